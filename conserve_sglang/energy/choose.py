"""Which meter a machine is read with."""

import time
from pathlib import Path

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Meter
from conserve_sglang.energy.nvml import NvmlMeter
from conserve_sglang.energy.replay import ReplayMeter

CHOICES = ("auto", "nvml", "replay")


def open_meter(choice: str = "auto", *, recording: str | None = None) -> Meter:
    """The meter of that name. Raises MeterError where it cannot read anything.

    A `ModelMeter` is not among them: it is made of profiles, not of what a machine has.
    """
    if choice == "replay":
        if recording is None:
            raise MeterError("The replay meter needs a recording.")
        return ReplayMeter.from_file(Path(recording), time.monotonic)
    if choice in ("auto", "nvml"):
        return NvmlMeter()
    raise MeterError(f"There is no meter {choice!r} here; there are {', '.join(CHOICES)}.")
