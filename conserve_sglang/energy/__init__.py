"""What machines draw: meters, each number with where it comes from."""

from conserve_sglang.energy.meter import Device, Kind, Meter, Origin, Reading, Window
from conserve_sglang.energy.nvml import NvmlMeter
from conserve_sglang.energy.replay import ReplayMeter
from conserve_sglang.energy.zeus import ZeusMeter

__all__ = [
    "Device",
    "Kind",
    "Meter",
    "NvmlMeter",
    "Origin",
    "Reading",
    "ReplayMeter",
    "Window",
    "ZeusMeter",
]
