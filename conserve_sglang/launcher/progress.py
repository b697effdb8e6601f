"""What a launch reports while it goes on, as values for a table, for lines or for JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """What happened."""

    NOTICE = "notice"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    SERVING = "serving"
    DIED = "died"
    WAITING = "waiting"
    GIVEN_UP = "given_up"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One thing that happened; `process` is None when it concerns the whole deployment.

    `pid` is the process group of the process; `after_s` counts from the start of the step that
    this one ends.
    """

    step: Step
    message: str
    process: str | None = None
    pid: int | None = None
    log: str | None = None
    after_s: float | None = None


Report = Callable[[Progress], None]
