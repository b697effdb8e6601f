"""NVIDIA GPUs through NVML (nvidia-ml-py).

The total-energy counter (millijoules since the driver was loaded, Volta and newer) is the source.
It changes in steps of some 20 to 100 ms, which `measure_periods` looks at. A GPU without it has its
power integrated between readings, which misses what happens between them; `source` says so. The
power NVML tells is the mean of the last second on Ampere (GA100 left out) and newer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from conserve_sglang.core.errors import MeterError, clause
from conserve_sglang.energy.counter import median_gap_s
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading

COUNTER = "nvml total-energy counter"
INTEGRATED = "nvml power, integrated between readings"
NOT_INSTALLED = "The NVIDIA bindings are not installed: pip install nvidia-ml-py"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLimits:
    """A GPU's power limit in watts: set, in force, by default, and the range it can have."""

    set_w: float
    enforced_w: float
    default_w: float
    least_w: float
    most_w: float


@dataclass(slots=True)
class _Gpu:
    handle: Any
    device: Device
    has_counter: bool
    begin_j: float = 0.0
    joules: float = 0.0
    at_s: float = 0.0
    watts: float | None = None
    period_s: float | None = None


class NvmlMeter:
    """The GPUs with the given UUIDs, or all. Only reads.

    Raises `MeterError` without bindings, driver or GPU, and for a UUID that is not here.
    """

    def __init__(
        self, uuids: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._nvml = open_bindings()
        self._gpus = [self._open(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        if uuids is not None:
            self._choose(uuids)
        if not self._gpus:
            self.close()
            raise MeterError("NVML finds no GPU on this machine.")
        for gpu in self._gpus:
            gpu.at_s, gpu.watts = clock(), self._watts(gpu)
            gpu.begin_j = self._counter_j(gpu) if gpu.has_counter else 0.0

    def devices(self) -> tuple[Device, ...]:
        """The GPUs, in NVML's order."""
        return tuple(gpu.device for gpu in self._gpus)

    def read(self) -> dict[str, Reading]:
        """Each GPU now."""
        return {gpu.device.device_id: self._read(gpu) for gpu in self._gpus}

    def limits(self) -> dict[str, PowerLimits | None]:
        """Each GPU's power limits; None where it has none."""
        return {gpu.device.device_id: self._limits(gpu) for gpu in self._gpus}

    def driver_version(self) -> str:
        """The driver's, as it tells it."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def measure_periods(self, steps: int = 5, timeout_s: float = 3.0) -> None:
        """Watch how often each counter changes: the median of `steps` gaps. Blocks meanwhile."""
        for gpu in self._gpus:
            if gpu.has_counter:
                gpu.period_s = median_gap_s(
                    partial(self._counter_j, gpu), self._clock, steps, timeout_s
                )

    def close(self) -> None:
        """Let go of NVML."""
        self._nvml.nvmlShutdown()

    # inside

    def _open(self, index: int) -> _Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        device = Device(
            device_id=nvml.nvmlDeviceGetUUID(handle),
            kind=Kind.GPU,
            name=nvml.nvmlDeviceGetName(handle),
        )
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError_NotSupported:
            return _Gpu(handle, device, has_counter=False)
        return _Gpu(handle, device, has_counter=True)

    def _choose(self, uuids: Sequence[str]) -> None:
        known = {gpu.device.device_id: gpu for gpu in self._gpus}
        missing = [uuid for uuid in uuids if uuid not in known]
        if missing:
            self.close()
            raise MeterError(
                f"There is no GPU {', '.join(missing)} on this machine."
                f" It has: {', '.join(known) or 'none'}."
            )
        self._gpus = [known[uuid] for uuid in uuids]

    def _read(self, gpu: _Gpu) -> Reading:
        try:
            now, watts = self._clock(), self._watts(gpu)
            if gpu.has_counter:
                gpu.joules = self._counter_j(gpu) - gpu.begin_j
            elif watts is not None and gpu.watts is not None:
                gpu.joules += (now - gpu.at_s) * (watts + gpu.watts) / 2
        except self._nvml.NVMLError as error:
            raise MeterError(f"{gpu.device.device_id} cannot be read: {error}") from error
        gpu.at_s, gpu.watts = now, watts
        return Reading(
            device_id=gpu.device.device_id,
            at_s=now,
            joules=gpu.joules,
            watts=watts,
            origin=Origin.MEASURED,
            source=COUNTER if gpu.has_counter else INTEGRATED,
            period_s=gpu.period_s,
        )

    def _counter_j(self, gpu: _Gpu) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)) / 1e3

    def _watts(self, gpu: _Gpu) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(gpu.handle)) / 1e3
        except self._nvml.NVMLError_NotSupported:
            return None

    def _limits(self, gpu: _Gpu) -> PowerLimits | None:
        nvml, handle = self._nvml, gpu.handle
        try:
            least, most = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            return PowerLimits(
                set_w=nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
                enforced_w=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
                default_w=nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
                least_w=least / 1e3,
                most_w=most / 1e3,
            )
        except nvml.NVMLError_NotSupported:
            return None


def gpu_uuids(gpu_ids: Sequence[int]) -> tuple[str, ...]:
    """The UUIDs of GPUs by NVML's index, which goes by PCI address whatever CUDA is shown.

    Raises `MeterError` for an index that is not here, or where NVML does not start.
    """
    nvml = open_bindings()
    try:
        num_gpus = nvml.nvmlDeviceGetCount()
        missing = [gpu_id for gpu_id in gpu_ids if gpu_id >= num_gpus]
        if missing:
            raise MeterError(
                f"There is no GPU {missing[0]} on this machine: NVML counts {num_gpus}, from 0."
            )
        handles = [nvml.nvmlDeviceGetHandleByIndex(gpu_id) for gpu_id in gpu_ids]
        return tuple(nvml.nvmlDeviceGetUUID(handle) for handle in handles)
    finally:
        nvml.nvmlShutdown()


def open_bindings() -> Any:
    """NVIDIA's own `pynvml`, initialised. Raises `MeterError` where there is none, or no driver."""
    try:
        import pynvml
    except ImportError as error:
        raise MeterError(NOT_INSTALLED) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeterError(
            f"NVML does not start: {clause(error)}. Is this a machine with an NVIDIA driver?"
        ) from error
    return pynvml
