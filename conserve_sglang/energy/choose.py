"""Which meter a machine is read with."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from conserve_sglang.core.errors import MeterError, WrongMeter
from conserve_sglang.energy.meter import Device, Kind, Meter
from conserve_sglang.energy.model import ModelMeter
from conserve_sglang.energy.nvml import NvmlMeter, gpu_uuids
from conserve_sglang.energy.replay import ReplayMeter
from conserve_sglang.energy.zeus import ZeusMeter
from conserve_sglang.profiles import open_profile, shipped_profiles

CHOICES = ("auto", "zeus", "nvml", "replay")
_NO_METER = (
    "Nothing on this machine tells its energy: {why} Where nothing measures, the model meter and"
    " profiles give modelled numbers (energy.meter: model in the tier map)."
)


def open_meter(
    choice: str = "auto",
    *,
    recording: str | None = None,
    with_gpus: bool = True,
    with_cpus: bool = True,
    gpu_ids: Sequence[int] | None = None,
) -> Meter:
    """The meter of that name, for GPUs, for CPU packages and their memory, or for both.

    With `gpu_ids`, NVML's indices, it reads these GPUs and no other, and tells them in that order;
    a recording is played as it is.

    `auto`: zeus where it is installed, else, or where it finds nothing, NVML. Never a model: that
    is made of profiles, and has to be asked for. Raises MeterError where nothing can be read,
    and its WrongMeter where it was asked for wrongly.
    """
    if choice == "replay":
        if recording is None:
            raise WrongMeter(
                "The replay meter needs a recording: --recording FILE, or in a tier map"
                " energy.recording."
            )
        return ReplayMeter.from_file(Path(recording), time.monotonic)
    if choice not in CHOICES:
        raise WrongMeter(
            f"There is no meter {choice!r} here; there are {', '.join(CHOICES)} and model."
        )

    def uuids() -> Sequence[str] | None:
        return gpu_uuids(gpu_ids) if with_gpus and gpu_ids is not None else None

    def zeus() -> Meter:
        return ZeusMeter(with_gpus=with_gpus, with_cpus=with_cpus, uuids=uuids())

    def nvml() -> Meter:
        return NvmlMeter(uuids())

    if choice == "zeus":
        return zeus()
    if choice == "nvml":
        return nvml()
    found: list[Callable[[], Meter]] = [zeus] if find_spec("zeus") is not None else []
    return _first([*found, nvml] if with_gpus else found)


def modelled_device(profile: str | None) -> ModelMeter:
    """One device that a profile stands for, with nothing running on it."""
    if profile is None:
        raise WrongMeter(
            "The model meter needs a profile; there are: " + ", ".join(shipped_profiles()) + "."
        )
    known = open_profile(profile)
    device = Device(device_id=f"model-{known.name}", kind=Kind.GPU, name=f"{known.gpu}, modelled")
    return ModelMeter([(device, known)])


def _first(meters: list[Callable[[], Meter]]) -> Meter:
    problems = []
    for open_one in meters:
        try:
            return open_one()
        except MeterError as error:
            if str(error) not in problems:
                problems.append(str(error))
    if not problems:
        problems.append("CPU packages are read through zeus, and it is not installed.")
    raise MeterError(_NO_METER.format(why=" ".join(problems)))
