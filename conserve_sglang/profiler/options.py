"""What the user of a profile chooses, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.launcher.progress import Progress
from conserve_sglang.profiler.point import Sweep
from conserve_sglang.profiler.power_source import MeterChoice
from conserve_sglang.profiler.sweep import Step
from conserve_sglang.profiles import Profile

Event = Progress | Step | str
"""The launcher's progress, the sweep's, or a sentence."""

Report = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """`out` is the profile's path without ending: FOLDER/NAME. `attach` are addresses of running
    workers, measured instead of starting some. `budget_s`, for each cap, None: until every point is
    measured. `power_caps_w`: a profile at each; none: one, with the cap as it is. `num_starts`: how
    often the workers are started, each time with one first handoff; points are measured after the
    last start."""

    out: Path
    log_dir: Path
    budget_s: float | None = None
    tier: str | None = None
    host: str | None = None
    attach: tuple[str, ...] = ()
    power_caps_w: tuple[float, ...] = ()
    meter: MeterChoice = "auto"
    max_batch: int | None = None
    sweeps: frozenset[Sweep] = frozenset(Sweep)
    begins_anew: bool = False
    num_starts: int = 1
    ready_timeout_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """The profile that was written, where, and its page of plots; `failures` are points that could
    not be measured, and why."""

    profile: Profile
    path: Path
    page: Path | None
    failures: tuple[tuple[str, str], ...]


def meter_choice(name: str) -> MeterChoice:
    """A meter by its name. Raises `ConfigError` for one there is not."""
    for known in get_args(MeterChoice):
        if name == known:
            choice: MeterChoice = known
            return choice
    raise ConfigError(f"--meter {name!r}: there are {', '.join(get_args(MeterChoice))}")
