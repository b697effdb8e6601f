"""A circuit breaker: keeps turns away from a worker that fails them, and lets it prove itself.

    closed ──too many failures──> open ──cool-down over, a probe answered──> half-open
      ^                            ^                                             │
      │                            └────────────────a trial turn failed──────────┤
      └──────────────────────────────enough trial turns answered─────────────────┘

Each time it opens again without having been closed for long, the cool-down doubles up to a bound.
The length of a cool-down is drawn at random from its upper half, so that many routers do not come
back to one worker at the same moment. It reads no clock: `now` is an argument.
"""

import random
from collections import deque
from enum import Enum

from conserve_sglang.core.health import BreakerSettings

NUM_SLICES = 10


class BreakerState(Enum):
    """Whether turns may pass."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class CircuitBreaker:
    """Counts one worker's answers and failures."""

    __slots__ = (
        "_closed_at_s",
        "_consecutive",
        "_cooldown_s",
        "_num_answered",
        "_num_trials_answered",
        "_rng",
        "_settings",
        "_slices",
        "num_openings",
        "reason",
        "state",
        "until_s",
    )

    def __init__(self, settings: BreakerSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self.num_openings = 0
        self._consecutive = 0
        self._num_answered = 0  # since time was last looked at
        self._slices: deque[list[float]] = deque()  # beginning, answered, failed
        self.reset()

    def reset(self) -> None:
        """Forget everything, as for a worker that is met anew."""
        self.state = BreakerState.CLOSED
        self.reason = ""
        self.until_s = 0.0  # while open: when a probe may half open it
        self._cooldown_s = 0.0
        self._closed_at_s: float | None = None
        self._num_trials_answered = 0
        self._clear()

    @property
    def num_trials_left(self) -> int:
        """While half open: turns that are still to be answered."""
        return self._settings.trial_turns - self._num_trials_answered

    def answered(self, count: int = 1) -> bool:
        """Turns were answered; True if that closed the breaker."""
        self._consecutive = 0
        self._num_answered += count
        if self.state is not BreakerState.HALF_OPEN:
            return False
        self._num_trials_answered += count
        if self._num_trials_answered < self._settings.trial_turns:
            return False
        self.state = BreakerState.CLOSED
        self.reason = ""
        self._closed_at_s = None  # the next `pass_time` sets it
        self._clear()
        return True

    def failed(self, now: float, why: str) -> bool:
        """A turn failed at the worker; True if that opened the breaker."""
        if self.state is BreakerState.OPEN:
            return False  # a turn of before it opened
        self.pass_time(now)
        self._consecutive += 1
        self._slices[-1][2] += 1
        if self.state is BreakerState.HALF_OPEN:
            self._open(now, f"a trial turn failed: {why}")
            return True
        reason = self._too_many()
        if reason is not None:
            self._open(now, f"{reason}, the last: {why}")
        return reason is not None

    def may_probe(self, now: float) -> bool:
        """Whether an answered probe may half open it."""
        return self.state is BreakerState.OPEN and now >= self.until_s

    def half_open(self) -> None:
        """A probe was answered after the cool-down: let trial turns pass."""
        self.state = BreakerState.HALF_OPEN
        self._num_trials_answered = 0
        self._consecutive = 0

    def pass_time(self, now: float) -> None:
        """Take note of the time, so that what is older than the window is forgotten."""
        slices, settings = self._slices, self._settings
        if slices:
            slices[-1][1] += self._num_answered
            self._num_answered = 0
        width_s = settings.window_s / NUM_SLICES
        if not slices or now - slices[-1][0] >= width_s:
            slices.append([now, self._num_answered, 0])
            self._num_answered = 0
        while slices[0][0] <= now - settings.window_s:
            slices.popleft()
        if self.state is BreakerState.CLOSED:
            if self._closed_at_s is None:
                self._closed_at_s = now
            elif now - self._closed_at_s >= settings.max_cooldown_s:
                self._cooldown_s = 0.0

    # inside

    def _clear(self) -> None:
        self._consecutive = 0
        self._num_answered = 0
        self._slices.clear()

    def _too_many(self) -> str | None:
        settings = self._settings
        if self._consecutive >= settings.consecutive_failures:
            return f"{self._consecutive} turns in a row failed"
        failed = sum(each[2] for each in self._slices)
        total = failed + sum(each[1] for each in self._slices)
        if total >= settings.min_turns and failed >= settings.failure_ratio * total:
            return f"{failed:g} of {total:g} turns failed in {settings.window_s:g} s"
        return None

    def _open(self, now: float, reason: str) -> None:
        settings = self._settings
        longer_s = max(settings.cooldown_s, 2 * self._cooldown_s)
        self._cooldown_s = min(longer_s, settings.max_cooldown_s)
        self.until_s = now + self._cooldown_s * self._rng.uniform(0.5, 1.0)
        self.state = BreakerState.OPEN
        self.reason = reason
        self.num_openings += 1
        self._clear()
