"""Measures point after point until all are done or the time is spent."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from conserve_sglang.core.errors import NotCapable
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.outcome import Outcome
from conserve_sglang.profiler.planner import Planner
from conserve_sglang.profiler.point import Point, Sweep
from conserve_sglang.profiler.stopping import StopRule

_SHARE_OF_BUDGET = 1 / 30  # the most that one point may take
_LEAST_POINT_S, _MOST_POINT_S = 2.0, 20.0
_UNKNOWN_S = 3.0  # what a first point of a sweep is thought to take


class Measure(Protocol):
    """Measures the points of a sweep."""

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """One point; raises `WorkerError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where a sweep is: what comes now, what was measured last, how long it will still take.

    `left_s` is None as long as nobody can tell.
    """

    num_done: int
    num_left: int
    elapsed_s: float
    left_s: float | None
    now: Point | None
    last: Outcome | None


async def run_sweep(
    planner: Planner,
    measures: Mapping[Sweep, Measure],
    journal: Journal,
    *,
    budget_s: float | None,
    report: Callable[[Step], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure the widest gap again and again. With a budget, only what is thought to fit into what
    is left of it; what a worker refuses is noted and passed over."""
    began_s = clock()
    for outcome in journal.outcomes:
        planner.done(outcome.point)
    rule = StopRule(most_seconds=point_limit_s(budget_s))
    last: Outcome | None = None

    def left_of_budget_s() -> float | None:
        return None if budget_s is None else budget_s - (clock() - began_s)

    def affords(point: Point) -> bool:
        left_s = left_of_budget_s()
        return left_s is None or (left_s > 0 and cost_s(point, journal.outcomes) <= left_s)

    while True:
        now = planner.next(affords)
        report(
            Step(
                num_done=len(journal.outcomes),
                num_left=len(planner.left),
                elapsed_s=clock() - began_s,
                left_s=_left_s(planner.left, journal.outcomes, left_of_budget_s()),
                now=now,
                last=last,
            )
        )
        if now is None:
            return
        last = await _measured(measures[Sweep(now.sweep)], now, rule, clock)
        journal.add(last)
        planner.done(now)


def point_limit_s(budget_s: float | None) -> float:
    """The most seconds of repeats for one point."""
    if budget_s is None:
        return _MOST_POINT_S
    return min(_MOST_POINT_S, max(_LEAST_POINT_S, budget_s * _SHARE_OF_BUDGET))


def cost_s(point: Point, outcomes: Sequence[Outcome]) -> float:
    """What measuring a point is thought to take: as the one with the most similar work of its
    sweep, in proportion to the work where that is more."""
    same = [one for one in outcomes if one.point.sweep == point.sweep and one.took_s > 0]
    if not same:
        return _UNKNOWN_S
    nearest = min(same, key=lambda one: abs(one.point.work - point.work))
    return nearest.took_s * max(1.0, point.work / max(1, nearest.point.work))


async def _measured(
    measure: Measure, point: Point, rule: StopRule, clock: Callable[[], float]
) -> Outcome:
    began_s = clock()
    try:
        return await measure.measure(point, rule)
    except NotCapable as refused:
        return Outcome(point=point, took_s=clock() - began_s, failure=str(refused))


def _left_s(
    left: Sequence[Point], outcomes: Sequence[Outcome], budget_s: float | None
) -> float | None:
    if not outcomes:
        return budget_s
    all_s = sum(cost_s(point, outcomes) for point in left)
    return all_s if budget_s is None else max(0.0, min(all_s, budget_s))
