"""Whose energy it was: joules of a device over a window, split over the work done in it. Pure.

    window      what a meter told of one device between two readings
    span        a batch of one worker on that device: when, and what part each turn has in it

1. *Idle* is the part of the window in which no worker of the device ran a batch. It is billed
   apart, at the device's idle power, or in proportion to its time where that is not known; never
   more than the window holds. What a device draws idle while it works is the work's: it had to be
   on.
2. The rest is shared by the spans, in proportion to the energy a profile predicts for each, or, if
   one of them has no prediction, to their seconds in the window. Spans of several workers on one
   device are shared in the same way; such a bill says so (`is_shared`), since no counter tells them
   apart.
3. A span's joules are split over its parts by their weights.

Parts and idle sum to the window's joules: nothing is made up, nothing is lost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.phase_log import Phase


@dataclass(frozen=True, slots=True)
class Part:
    """What a span did for one turn; `conversation` is None for requests that named none.

    `weight` is its share of the span, in any unit that the span's other parts have too.
    """

    conversation: str | None
    turn: int
    phase: Phase
    weight: float


@dataclass(frozen=True, slots=True)
class Span:
    """A batch of one worker on one device. `joules` as predicted for all of it; None: unknown."""

    worker: WorkerId
    start_s: float
    end_s: float
    parts: tuple[Part, ...]
    joules: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterWindow:
    """What one device used from `start_s` to `end_s`, of the clock that spans have."""

    start_s: float
    end_s: float
    joules: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What energy is booked on: a worker, a phase and a turn."""

    worker: WorkerId
    phase: str
    conversation: str | None
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One window's joules, split.

    `busy_s` is how long any worker ran a batch. `is_shared`: more than one worker had work in it,
    so who used how much is attributed, not told apart by a counter. `is_predicted`: by a profile's
    energy; else by time.
    """

    idle_j: float
    work_j: Mapping[Account, float]
    busy_s: float
    is_shared: bool
    is_predicted: bool

    @property
    def total_j(self) -> float:
        """All of it: the window's joules."""
        return math.fsum((self.idle_j, *self.work_j.values()))


def attribute(window: MeterWindow, spans: Sequence[Span], idle_w: float | None) -> Bill:
    """Split a window's joules. Spans may reach beyond the window: their share in it counts.

    `idle_w` is the device's idle power in watts, None if nobody knows it. Raises ValueError for a
    window without time or with less than no energy, as after a counter was reset.
    """
    if not (window.seconds > 0 and window.joules >= 0):
        raise ValueError(f"a window of {window.seconds:g} s with {window.joules:g} J")
    inside = [(span, _overlap_s(span, window)) for span in spans]
    inside = [(span, seconds) for span, seconds in inside if seconds > 0 and span.parts]
    busy_s = union_s(((s.start_s, s.end_s) for s, _ in inside), window.start_s, window.end_s)
    idle_j = _idle_j(window, busy_s, idle_w) if inside else window.joules
    is_predicted = bool(inside) and all(_can_predict(span) for span, _ in inside)
    weights = [_weight(span, seconds, is_predicted) for span, seconds in inside]
    if not math.fsum(weights) > 0:
        weights = [seconds for _, seconds in inside]
    active_j, total = window.joules - idle_j, math.fsum(weights)
    work_j: dict[Account, float] = {}
    for (span, _), weight in zip(inside, weights, strict=True):
        for part, share in _shares(span):
            account = Account(span.worker, part.phase.value, part.conversation, part.turn)
            work_j[account] = work_j.get(account, 0.0) + active_j * (weight / total) * share
    return Bill(
        idle_j=idle_j,
        work_j=work_j,
        busy_s=busy_s,
        is_shared=len({span.worker for span, _ in inside}) > 1,
        is_predicted=is_predicted,
    )


def union_s(intervals: Iterable[tuple[float, float]], start_s: float, end_s: float) -> float:
    """Seconds between `start_s` and `end_s` that any of the intervals covers."""
    covered, reached = 0.0, start_s
    for first_s, last_s in sorted(intervals):
        from_s, to_s = max(first_s, reached), min(last_s, end_s)
        if to_s > from_s:
            covered += to_s - from_s
            reached = to_s
    return covered


def _overlap_s(span: Span, window: MeterWindow) -> float:
    return min(span.end_s, window.end_s) - max(span.start_s, window.start_s)


def _idle_j(window: MeterWindow, busy_s: float, idle_w: float | None) -> float:
    idle_share = max(0.0, 1.0 - busy_s / window.seconds)
    if idle_w is None:
        return window.joules * idle_share
    return min(idle_w * idle_share * window.seconds, window.joules)


def _can_predict(span: Span) -> bool:
    return span.joules is not None and span.joules > 0


def _weight(span: Span, seconds: float, is_predicted: bool) -> float:
    """Energy predicted for its part in the window, or seconds."""
    if is_predicted and span.joules is not None:
        return span.joules * (seconds / (span.end_s - span.start_s))
    return seconds


def _shares(span: Span) -> Iterable[tuple[Part, float]]:
    total = math.fsum(part.weight for part in span.parts)
    for part in span.parts:
        yield part, part.weight / total if total > 0 else 1 / len(span.parts)


class IdlePower:
    """A device's idle power as seen: the least mean power of a time without any work.

    Windows one right after the other count together, and only from `least_s` on: in a shorter time
    a counter's steps would show.
    """

    def __init__(self, known_w: float | None = None, least_s: float = 0.9) -> None:
        self._known_w = known_w
        self._least_s = least_s
        self._seen_w: float | None = None
        self._seconds = self._joules = 0.0  # without work, up to the last window

    @property
    def watts(self) -> float | None:
        """As seen, else as known before, else None."""
        return self._known_w if self._seen_w is None else self._seen_w

    def see(self, window: MeterWindow, busy_s: float) -> None:
        """Look at a window that is over; they come in order and leave no gap."""
        if busy_s > 0:
            self._seconds = self._joules = 0.0
            return
        self._seconds += window.seconds
        self._joules += window.joules
        if self._seconds >= self._least_s:
            watts = self._joules / self._seconds
            if watts > 0:
                self._seen_w = watts if self._seen_w is None else min(self._seen_w, watts)
            self._seconds = self._joules = 0.0
