"""Plays recorded readings back: for tests, and for machines that have no meter of their own.

A recording is CSV with the columns at_s, device_id, kind, name, joules, watts and source. What was
measured when it was recorded stays measured, and the source says that it was recorded.
"""

import csv
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from conserve_sglang.core.errors import MeterError, WrongMeter
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading

COLUMNS = ("at_s", "device_id", "kind", "name", "joules", "watts", "source")


class ReplayMeter:
    """Tells at `clock()` the last reading recorded before; the recording's first time is 0."""

    def __init__(self, readings: Iterable[tuple[Device, Reading]], clock: Callable[[], float]):
        self._clock = clock
        self._devices: dict[str, Device] = {}
        self._tracks: dict[str, list[Reading]] = {}
        for device, reading in readings:
            self._devices[device.device_id] = device
            self._tracks.setdefault(device.device_id, []).append(reading)
        if not self._tracks:
            raise WrongMeter("The recording holds no reading.")
        self._times = {name: [r.at_s for r in track] for name, track in self._tracks.items()}
        for name, times in self._times.items():
            if times != sorted(times):
                raise WrongMeter(f"The recording of {name} goes back in time.")
        self._began_s = clock()
        self._first_s = min(times[0] for times in self._times.values())

    @classmethod
    def from_file(cls, path: Path, clock: Callable[[], float]) -> "ReplayMeter":
        """Read a recording. Raises `WrongMeter` with the line that is wrong."""
        return cls(_rows(path), clock)

    def devices(self) -> tuple[Device, ...]:
        """As recorded, in order of appearance."""
        return tuple(self._devices.values())

    def read(self) -> dict[str, Reading]:
        """The last reading of each device that has one yet."""
        at_s = self._clock() - self._began_s + self._first_s
        found = {}
        for name, track in self._tracks.items():
            number = bisect_right(self._times[name], at_s)
            if number:
                found[name] = track[number - 1]
        return found

    def close(self) -> None:
        """Nothing is held."""


def record(path: Path, devices: Iterable[Device], readings: Iterable[Mapping[str, Reading]]) -> int:
    """Write readings as a recording; how many rows. Modelled readings are refused, and then there
    is no file."""
    known = {device.device_id: device for device in devices}
    rows = [
        _row(known[reading.device_id], reading)
        for moment in readings
        for reading in moment.values()
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def _row(device: Device, reading: Reading) -> tuple[str, ...]:
    if reading.origin is not Origin.MEASURED:
        raise MeterError(f"{reading.device_id} is modelled: only measured is recorded.")
    watts = "" if reading.watts is None else repr(reading.watts)
    return (
        repr(reading.at_s), device.device_id, device.kind.value, device.name,
        repr(reading.joules), watts, reading.source,
    )  # fmt: skip


def _rows(path: Path) -> Iterable[tuple[Device, Reading]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or COLUMNS
    except OSError as error:
        raise WrongMeter(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongMeter(f"{path} cannot be read: it is not UTF-8 text") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise WrongMeter(
            f"{path}, line 1: there is no column {missing[0]}. A recording has the columns"
            f" {','.join(COLUMNS)}, as `conserve-sglang energy --seconds N --record FILE` writes."
        )
    for number, row in enumerate(rows, 2):
        try:
            device = Device(
                device_id=row["device_id"], kind=Kind(row["kind"]), name=row["name"]
            )  # fmt: skip
            reading = Reading(
                device_id=device.device_id,
                at_s=float(row["at_s"]),
                joules=float(row["joules"]),
                watts=float(row["watts"]) if row["watts"] else None,
                origin=Origin.MEASURED,
                source=f"recorded: {row['source']}",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WrongMeter(
                f"{path}, line {number}: {error}. The columns are {','.join(COLUMNS)}."
            ) from error
        yield device, reading
