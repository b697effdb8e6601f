"""The meters of one host, which of its workers use which device, and what profiles say of them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from conserve_sglang.agent.here import Here
from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import WorkerPlan
from conserve_sglang.energy.choose import open_meter
from conserve_sglang.energy.meter import Device, Kind, Meter, Reading
from conserve_sglang.energy.model import ModelMeter
from conserve_sglang.energy.work import Predictor
from conserve_sglang.profiles import Profile, open_profile

logger = logging.getLogger(__name__)

Users = Mapping[str, tuple[WorkerId, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """A meter, and what its devices are to the workers of this host.

    `users` names the devices that workers use; only these are read. `idle_w` is the idle power that
    profiles know of; `model` is the meter itself where it has to be told what was done.
    `unmeasured` are the workers of whose energy nothing is known.
    """

    meter: Meter
    users: Users
    predictors: Mapping[WorkerId, Predictor | None]
    idle_w: Mapping[str, float | None]
    model: ModelMeter | None = None
    unmeasured: tuple[WorkerId, ...] = ()

    def read(self) -> dict[str, Reading]:
        """The devices that workers use, now. Raises `MeterError` when one is gone."""
        readings = self.meter.read()
        return {name: each for name, each in readings.items() if name in self.users}


OpenMeter = Callable[[Here], Metered]


def meter_of(here: Here) -> Metered:
    """The meter of a host's devices, as its tier map asks for. Blocks for a moment.

    GPUs are counted as NVML does, in the order of their PCI addresses; the launcher has CUDA count
    so too. A recording's GPUs are counted as they appear. On the CPU all workers share all packages
    and all memory; a worker there is never given a GPU's joules. Raises `MeterError` where a GPU is
    not there, or where nothing measures any worker.
    """
    profiles = {worker.worker_id: _profile(here, worker) for worker in here.workers}
    predictors = {
        worker_id: None if profile is None else Predictor(profile)
        for worker_id, profile in profiles.items()
    }
    if here.settings.meter == "model":
        return _modelled(here, profiles, predictors)
    meter = open_meter(
        here.settings.meter,
        recording=here.settings.recording,
        with_gpus=bool(here.gpu_ids()),
        gpu_ids=here.gpu_ids(),
        with_cpus=any(here.tier_of(worker).is_cpu for worker in here.workers),
    )
    try:
        users = _users(here, meter)
    except MeterError:
        meter.close()
        raise
    idle_w = {
        device_id: _idle_w([profiles[worker_id] for worker_id in worker_ids])
        for device_id, worker_ids in users.items()
    }
    measured = {worker_id for worker_ids in users.values() for worker_id in worker_ids}
    unmeasured = tuple(sorted(profiles.keys() - measured))
    if unmeasured:
        logger.warning("no meter tells of the CPU: not measured are %s", ", ".join(unmeasured))
    return Metered(
        meter=meter, users=users, predictors=predictors, idle_w=idle_w, unmeasured=unmeasured
    )


def _profile(here: Here, worker: WorkerPlan) -> Profile | None:
    name = here.tier_of(worker).profile
    return None if name is None else open_profile(name)


def _idle_w(profiles: list[Profile | None]) -> float | None:
    known = [profile.idle_w for profile in profiles if profile is not None]
    return max((watts for watts in known if watts is not None), default=None)


def _users(here: Here, meter: Meter) -> Users:
    gpus = [device for device in meter.devices() if device.kind is Kind.GPU]
    others = [device for device in meter.devices() if device.kind is not Kind.GPU]
    is_recorded = here.settings.meter == "replay"
    gpu_of = dict(enumerate(gpus) if is_recorded else zip(here.gpu_ids(), gpus, strict=False))
    users: dict[str, list[WorkerId]] = {}
    for worker in here.workers:
        missing = [gpu_id for gpu_id in worker.gpu_ids if gpu_id not in gpu_of]
        if missing:
            raise MeterError(
                f"{worker.worker_id} uses GPU {missing[0]}, and the meter tells of"
                f" {len(gpus)} GPU{'' if len(gpus) == 1 else 's'}."
            )
        is_cpu = here.tier_of(worker).is_cpu
        for device in others if is_cpu else [gpu_of[gpu_id] for gpu_id in worker.gpu_ids]:
            users.setdefault(device.device_id, []).append(worker.worker_id)
    if not users:
        raise MeterError(
            f"energy.meter: {here.settings.meter} tells of no CPU package, and all workers of"
            f" {here.host} run on the CPU. RAPL tells of them (meter: auto, with zeus, as root);"
            " profiles model them (meter: model)."
        )
    return {device_id: tuple(workers) for device_id, workers in users.items()}


def _modelled(
    here: Here,
    profiles: Mapping[WorkerId, Profile | None],
    predictors: Mapping[WorkerId, Predictor | None],
) -> Metered:
    """One modelled device for each GPU that is named, and for each worker on the CPU."""
    devices: dict[str, tuple[Device, Profile]] = {}
    users: dict[str, list[WorkerId]] = {}
    for worker in here.workers:
        profile = profiles[worker.worker_id]
        if profile is None:
            raise MeterError(f"The model meter needs a profile for tier {worker.tier}.")
        is_cpu = here.tier_of(worker).is_cpu
        names = [worker.worker_id] if is_cpu else [f"gpu-{gpu_id}" for gpu_id in worker.gpu_ids]
        for name in names:
            device_id = f"model-{name}"
            kind = Kind.CPU_PACKAGE if is_cpu else Kind.GPU
            device = Device(device_id=device_id, kind=kind, name=f"{profile.gpu}, modelled")
            devices.setdefault(device_id, (device, profile))
            users.setdefault(device_id, []).append(worker.worker_id)
    model = ModelMeter(tuple(devices.values()))
    return Metered(
        meter=model,
        users={device_id: tuple(workers) for device_id, workers in users.items()},
        predictors=predictors,
        idle_w={device_id: model.idle_w(device_id) for device_id in users},
        model=model,
    )
