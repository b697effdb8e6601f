"""What can be measured on this machine, and what may be set."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.choose import open_meter
from conserve_sglang.energy.meter import Device, Meter, Reading, Window, windows
from conserve_sglang.energy.nvml import NvmlMeter, PowerLimits
from conserve_sglang.energy.replay import record
from conserve_sglang.energy.zeus import ZeusMeter

_CAP_SYS_ADMIN = 21
RECORD_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One device; `used` is set if it was measured for a while."""

    device: Device
    reading: Reading
    limits: PowerLimits | None
    used: Window | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The devices, and whether this process may set power limits and clocks.

    `problems` says what else could not be read, and why.
    """

    devices: tuple[Surveyed, ...]
    may_set: bool
    problems: tuple[str, ...] = ()


def survey(
    meter: Meter | None = None, seconds: float = 0.0, record_to: Path | None = None
) -> Survey:
    """Look at every device of a meter, by default all there are; it is closed.

    With `seconds` also measure for so long, and write what was read meanwhile as a recording, if
    asked to. Only reads, and blocks. Raises `MeterError` where there is nothing to measure.
    """
    meter = open_meter() if meter is None else meter
    try:
        if isinstance(meter, NvmlMeter | ZeusMeter):
            meter.measure_periods()
        moments = list(_readings(meter, seconds, RECORD_EVERY_S if record_to else seconds))
        if record_to is not None:
            _record(record_to, meter, moments)
        before, after = moments[0], moments[-1]
        used = windows(before, after) if seconds else {}
        limits = _limits(meter)
        return Survey(
            devices=tuple(
                Surveyed(
                    device=device,
                    reading=after[device.device_id],
                    limits=limits.get(device.device_id),
                    used=used.get(device.device_id),
                )
                for device in meter.devices()
                if device.device_id in after
            ),
            may_set=may_set(),
            problems=tuple(meter.problems) if isinstance(meter, ZeusMeter) else (),
        )
    finally:
        meter.close()


def nothing_found(why: str) -> Survey:
    """The survey of a machine where nothing is measured."""
    return Survey(devices=(), may_set=may_set(), problems=(why,))


def _readings(meter: Meter, seconds: float, every_s: float) -> Iterator[Mapping[str, Reading]]:
    """One at the beginning, one at the end, and some between."""
    yield meter.read()
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(every_s, left_s))
        yield meter.read()


def _record(path: Path, meter: Meter, moments: list[Mapping[str, Reading]]) -> None:
    try:
        record(path, meter.devices(), moments)
    except OSError as error:
        raise MeterError(f"--record {path}: cannot be written: {error.strerror}") from error


def _limits(meter: Meter) -> Mapping[str, PowerLimits | None]:
    """Power limits are NVML's to tell, whatever the energy is read through."""
    if isinstance(meter, NvmlMeter):
        return meter.limits()
    if not isinstance(meter, ZeusMeter):
        return {}
    try:
        nvml = NvmlMeter()
    except MeterError:
        return {}
    try:
        return nvml.limits()
    finally:
        nvml.close()


def may_set(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_SYS_ADMIN, which NVML asks of whoever sets limits or clocks."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
