"""What can be measured on this machine, and what may be set."""

import time
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.energy.meter import Device, Reading, Window, windows
from conserve_sglang.energy.nvml import NvmlMeter, PowerLimits

_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One device; `used` is set if it was measured for a while."""

    device: Device
    reading: Reading
    limits: PowerLimits | None
    used: Window | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The devices, and whether this process may set power limits and clocks."""

    devices: tuple[Surveyed, ...]
    may_set: bool


def survey(seconds: float = 0.0) -> Survey:
    """Look at every GPU; with `seconds` also measure for so long. Only reads, and blocks.

    Raises `MeterError` where there is nothing to measure.
    """
    meter = NvmlMeter()
    try:
        meter.measure_periods()
        before = meter.read()
        if seconds:
            time.sleep(seconds)
        after = meter.read()
        used = windows(before, after) if seconds else {}
        limits = meter.limits()
        return Survey(
            devices=tuple(
                Surveyed(
                    device=device,
                    reading=after[device.device_id],
                    limits=limits[device.device_id],
                    used=used.get(device.device_id),
                )
                for device in meter.devices()
            ),
            may_set=may_set(),
        )
    finally:
        meter.close()


def may_set(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_SYS_ADMIN, which NVML asks of whoever sets limits or clocks."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
