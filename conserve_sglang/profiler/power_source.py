"""Which meter tells what the measured worker draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.tier import Tier, WorkerPlan
from conserve_sglang.energy.choose import open_meter
from conserve_sglang.energy.meter import Kind, Meter
from conserve_sglang.energy.nvml import NvmlMeter
from conserve_sglang.profiler.cpu_power import DEVICE_ID, CpuModelMeter
from conserve_sglang.profiler.power import PowerTrack

MeterChoice = Literal["auto", "zeus", "nvml", "cpu-model", "none"]
_CPU_SAMPLE_S = 0.1  # CPU time is told in hundredths of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSource:
    """What watts come from; without a track there are none, and `why` says so."""

    track: PowerTrack | None
    why: str = ""
    gpu_facts: tuple[tuple[str, str], ...] = ()


def power_source(
    choice: MeterChoice, tier: Tier, workers: Sequence[WorkerPlan], pids: Sequence[int]
) -> PowerSource:
    """The meter asked for. "auto" is zeus or NVML for a GPU's tier; for the CPU's what it tells of
    itself (RAPL, through zeus), else a model.

    Raises `MeterError` if a meter that was asked for by name is not to be had.
    """
    if choice == "none":
        return PowerSource(track=None, why="no meter was asked for")
    if choice == "cpu-model":
        return _of_model(pids)
    if choice == "nvml" or not tier.is_cpu:
        try:
            return _of_gpus(choice, workers)
        except MeterError as error:
            if choice != "auto":
                raise
            return PowerSource(track=None, why=str(error))
    try:
        return _of_cpu(choice)
    except MeterError as error:
        if choice != "auto":
            raise
        return _of_model(pids) if pids else PowerSource(track=None, why=str(error))


def _of_gpus(choice: MeterChoice, workers: Sequence[WorkerPlan]) -> PowerSource:
    """The GPUs of the workers, by their index on this machine; of a CPU's tier the first one."""
    indices = sorted({index for worker in workers for index in worker.gpu_ids}) or [0]
    meter = open_meter(choice, with_cpus=False)
    names = [device.device_id for device in meter.devices() if device.kind is Kind.GPU]
    missing = [index for index in indices if index >= len(names)]
    if missing:
        meter.close()
        raise MeterError(f"the tier map's GPU {missing[0]} is not here; NVML finds {len(names)}")
    chosen = [names[index] for index in indices]
    return PowerSource(track=PowerTrack(meter, chosen), gpu_facts=_gpu_facts(indices[0]))


def _gpu_facts(index: int) -> tuple[tuple[str, str], ...]:
    """What NVML tells of a GPU; nothing where it is not to be had."""
    try:
        nvml = NvmlMeter()
    except MeterError:
        return ()
    try:
        device = nvml.devices()[index]
        limits = nvml.limits()[device.device_id]
        limit = "unknown" if limits is None else f"{limits.enforced_w:g}"
        driver = nvml.driver_version()
        return ("gpu", device.name), ("driver", driver), ("power_limit_w", limit)
    finally:
        nvml.close()


def _of_cpu(choice: MeterChoice) -> PowerSource:
    """The packages of this machine, their mean; memory is left out."""
    meter = open_meter(choice, with_gpus=False)
    packages = [d.device_id for d in meter.devices() if d.kind is Kind.CPU_PACKAGE]
    if not packages:
        meter.close()
        raise MeterError("the meter tells of no CPU package")
    return PowerSource(track=PowerTrack(meter, packages))


def _of_model(pids: Sequence[int]) -> PowerSource:
    if not pids:
        raise MeterError("no meter: whose CPU time to count is known only of workers started here")
    meter: Meter = CpuModelMeter(pids)
    return PowerSource(track=PowerTrack(meter, [DEVICE_ID], sample_s=_CPU_SAMPLE_S))
