"""What a meter is, and what its numbers mean.

Every number carries its origin. A modelled joule is never shown without that word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Origin(Enum):
    """How a number came about."""

    MEASURED = "measured"
    MODELLED = "modelled"


class Kind(Enum):
    """What a meter's device is."""

    GPU = "gpu"
    CPU_PACKAGE = "cpu_package"
    DRAM = "dram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something whose energy is told apart: a GPU by its UUID, a CPU package, its memory."""

    device_id: str
    kind: Kind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One device at one moment.

    `at_s` is seconds of a monotonic clock, `joules` the energy since the meter's own beginning,
    `watts` the power as the device tells it (None where it does not). `source` names the counter;
    `period_s` is how often it was seen to change, None if that was not looked at. Energy over
    windows not much longer than the period is not to be trusted.
    """

    device_id: str
    at_s: float
    joules: float
    watts: float | None
    origin: Origin
    source: str
    period_s: float | None = None


class Meter(Protocol):
    """Reads the energy of some devices. Not to be shared between threads."""

    def devices(self) -> Sequence[Device]:
        """What it measures, in a fixed order."""
        ...

    def read(self) -> Mapping[str, Reading]:
        """Every device now, by its id. Raises `MeterError` when a device is gone."""
        ...

    def close(self) -> None:
        """Let go of the devices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one device used between two readings."""

    device_id: str
    seconds: float
    joules: float
    origin: Origin

    @property
    def mean_watts(self) -> float | None:
        """Joules over seconds; None for no time at all."""
        return self.joules / self.seconds if self.seconds > 0 else None


def windows(before: Mapping[str, Reading], after: Mapping[str, Reading]) -> dict[str, Window]:
    """What each device of both readings used between them, in the order of `before`.

    A window is measured if both of its ends are.
    """
    found = {}
    for device_id, first in before.items():
        last = after.get(device_id)
        if last is None:
            continue
        is_measured = first.origin is last.origin is Origin.MEASURED
        found[device_id] = Window(
            device_id=device_id,
            seconds=last.at_s - first.at_s,
            joules=last.joules - first.joules,
            origin=Origin.MEASURED if is_measured else Origin.MODELLED,
        )
    return found
