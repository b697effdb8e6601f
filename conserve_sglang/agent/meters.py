"""The meters of one host, and which of its workers use which device."""

from collections.abc import Mapping

from conserve_sglang.agent.here import Here
from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.energy.choose import open_meter
from conserve_sglang.energy.meter import Kind, Meter

Users = Mapping[str, tuple[WorkerId, ...]]


def meter_of(here: Here) -> tuple[Meter, Users]:
    """The meter of a host's devices, and the workers on each device that has some.

    GPUs are counted as NVML does, in the order of their PCI addresses; the launcher has CUDA count
    so too. On the CPU all workers share all packages and all memory.
    """
    meter = open_meter(here.settings.meter, recording=here.settings.recording)
    gpus = [device for device in meter.devices() if device.kind is Kind.GPU]
    users: dict[str, list[WorkerId]] = {}
    for worker in here.workers:
        if here.tier_of(worker).is_cpu:
            own = [device for device in meter.devices() if device.kind is not Kind.GPU] or gpus
        else:
            missing = [gpu_id for gpu_id in worker.gpu_ids if gpu_id >= len(gpus)]
            if missing:
                meter.close()
                raise MeterError(
                    f"{worker.worker_id} uses GPU {missing[0]}, and the meter tells of"
                    f" {len(gpus)} GPU{'' if len(gpus) == 1 else 's'} on this machine."
                )
            own = [gpus[gpu_id] for gpu_id in worker.gpu_ids]
        for device in own:
            users.setdefault(device.device_id, []).append(worker.worker_id)
    return meter, {device_id: tuple(workers) for device_id, workers in users.items()}
