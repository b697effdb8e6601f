"""Which meter tells what the measured worker draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.tier import Tier, WorkerPlan
from conserve_sglang.energy.meter import Meter
from conserve_sglang.energy.nvml import NvmlMeter
from conserve_sglang.profiler.cpu_power import DEVICE_ID, CpuModelMeter
from conserve_sglang.profiler.power import PowerTrack

MeterChoice = Literal["auto", "nvml", "cpu-model", "none"]
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
    """The meter asked for; "auto" is NVML for a GPU's tier, and a model of the CPU otherwise.

    Raises `MeterError` if a meter that was asked for by name is not to be had.
    """
    if choice == "none":
        return PowerSource(track=None, why="no meter was asked for")
    wants_gpu = choice == "nvml" or (choice == "auto" and not tier.is_cpu)
    try:
        return _of_gpus(tier, workers) if wants_gpu else _of_cpu(pids)
    except MeterError as error:
        if choice != "auto":
            raise
        return PowerSource(track=None, why=str(error))


def _of_gpus(tier: Tier, workers: Sequence[WorkerPlan]) -> PowerSource:
    """The GPUs of the workers, by their index on this machine; of a CPU's tier the first one."""
    indices = sorted({index for worker in workers for index in worker.gpu_ids}) or [0]
    meter = NvmlMeter()
    names = [device.device_id for device in meter.devices()]
    missing = [index for index in indices if index >= len(names)]
    if missing:
        meter.close()
        raise MeterError(f"the tier map's GPU {missing[0]} is not here; NVML finds {len(names)}")
    chosen = [names[index] for index in indices]
    limits = meter.limits()[chosen[0]]
    facts = [
        ("gpu", meter.devices()[indices[0]].name),
        ("driver", meter.driver_version()),
        ("power_limit_w", "unknown" if limits is None else f"{limits.enforced_w:g}"),
    ]
    return PowerSource(track=PowerTrack(meter, chosen), gpu_facts=tuple(facts))


def _of_cpu(pids: Sequence[int]) -> PowerSource:
    if not pids:
        raise MeterError("no meter: whose CPU time to count is known only of workers started here")
    meter: Meter = CpuModelMeter(pids)
    return PowerSource(track=PowerTrack(meter, [DEVICE_ID], sample_s=_CPU_SAMPLE_S))
