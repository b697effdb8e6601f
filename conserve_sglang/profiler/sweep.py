"""Measures point after point until all are done or the time is spent."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from conserve_sglang.core.errors import NotCapable
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.outcome import Outcome, doubt, surest
from conserve_sglang.profiler.planner import Planner
from conserve_sglang.profiler.point import Point, Sweep
from conserve_sglang.profiler.stopping import StopRule

_SHARE_OF_BUDGET = 1 / 30  # the most that one point may take
_LEAST_POINT_S, _MOST_POINT_S = 2.0, 20.0
_MOST_SLOW = 4.0  # times that, for one that is slow to prepare
_OVERRUN_S = 5.0  # what a point may take beyond the budget
_UNKNOWN_S = 2.0  # what a first point of a sweep is thought to take


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


class _Time:
    """How much has passed, and is left of a budget."""

    def __init__(self, budget_s: float | None, clock: Callable[[], float]) -> None:
        self._budget_s, self._clock, self._began_s = budget_s, clock, clock()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began_s

    @property
    def left_s(self) -> float | None:
        return None if self._budget_s is None else self._budget_s - self.elapsed_s


async def run_sweep(
    planner: Planner,
    measures: Mapping[Sweep, Measure],
    journal: Journal,
    *,
    budget_s: float | None,
    report: Callable[[Step], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure the widest gap again and again.

    Left out are points so slow that each would take several times what a point may, and with a
    budget those thought not to fit into what is left of it; one that does not fit after all is
    given up. What a worker refuses is noted and passed over. What is left of a budget goes to the
    points that are least sure, once more each.
    """
    spent = _Time(budget_s, clock)
    for outcome in journal.outcomes:
        planner.done(outcome.point)
    rule = StopRule(most_seconds=point_limit_s(budget_s))
    last: Outcome | None = None

    def affords(point: Point) -> bool:
        slow_s, left_s = _MOST_SLOW * rule.most_seconds, spent.left_s
        most_s = slow_s if left_s is None else min(slow_s, left_s)
        return most_s > 0 and cost_s(point, journal.outcomes, rule.most_seconds) <= most_s

    again: set[Point] = set()
    while True:
        now = planner.next(affords)
        if now is None and budget_s is not None:
            now = _least_sure(journal.outcomes, again, rule, affords)
        report(
            Step(
                num_done=len(surest(journal.outcomes)),
                num_left=len(planner.left),
                elapsed_s=spent.elapsed_s,
                left_s=_left_s(planner.left, journal.outcomes, spent.left_s, rule),
                now=now,
                last=last,
            )
        )
        if now is None:
            return
        last = await _measured(measures[Sweep(now.sweep)], now, rule, spent)
        if last is None:
            return
        again |= {now} - set(planner.left)
        journal.add(last)
        planner.done(now)


def point_limit_s(budget_s: float | None) -> float:
    """The most seconds of repeats for one point."""
    if budget_s is None:
        return _MOST_POINT_S
    return min(_MOST_POINT_S, max(_LEAST_POINT_S, budget_s * _SHARE_OF_BUDGET))


def cost_s(point: Point, outcomes: Sequence[Outcome], limit_s: float = _MOST_POINT_S) -> float:
    """What measuring a point is thought to take, from the most similar one of its sweep.

    Attention makes long prompts grow with the square of their length at worst, so that is what a
    longer one is thought to do; repeats stop at `limit_s`, but the last one begun is ended.
    """
    same = [one for one in outcomes if one.point.sweep == point.sweep and one.seconds is not None]
    if not same:
        return _UNKNOWN_S
    nearest = min(same, key=lambda one: _apart(one.point, point))
    longer = max(1.0, point.longest / nearest.point.longest)
    more = max(1.0, point.batch / nearest.point.batch)
    factor = longer**2 * more
    repeats_s = max(0.0, nearest.took_s - nearest.prepare_s)
    return 1.5 * nearest.prepare_s * factor + min(limit_s, repeats_s * factor)


def _apart(one: Point, other: Point) -> float:
    """How many octaves lie between two points of a sweep; what is longer than asked is farther."""
    lengths = math.log2(other.longest / one.longest)
    return abs(lengths) + abs(math.log2(other.batch / one.batch)) + 0.1 * (lengths < 0)


def _least_sure(
    outcomes: Sequence[Outcome],
    again: Set[Point],
    rule: StopRule,
    affords: Callable[[Point], bool],
) -> Point | None:
    """The point with the widest interval that is not narrow enough, nor was measured again."""
    doubtful = [
        one
        for one in surest(outcomes).values()
        if doubt(one) >= rule.most_rel_ci and one.point not in again and affords(one.point)
    ]
    return max(doubtful, key=doubt).point if doubtful else None


async def _measured(measure: Measure, point: Point, rule: StopRule, spent: _Time) -> Outcome | None:
    """One point; None if it is not done long after the budget."""
    began_s, left_s = spent.elapsed_s, spent.left_s
    most_s = None if left_s is None else left_s + _OVERRUN_S
    try:
        return await asyncio.wait_for(measure.measure(point, rule), most_s)
    except asyncio.TimeoutError:
        return None
    except NotCapable as refused:
        return Outcome(point=point, took_s=spent.elapsed_s - began_s, failure=str(refused))


def _left_s(
    left: Sequence[Point], outcomes: Sequence[Outcome], budget_s: float | None, rule: StopRule
) -> float | None:
    if not outcomes:
        return budget_s
    all_s = sum(cost_s(point, outcomes, rule.most_seconds) for point in left)
    return all_s if budget_s is None else max(0.0, min(all_s, budget_s))
