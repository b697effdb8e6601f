"""A sweep ends with its points or its time, keeps each point, and goes on where it was."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import NotCapable, Unreachable
from conserve_sglang.profiler.grid import Limits, candidates
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.outcome import Outcome, surest
from conserve_sglang.profiler.planner import Planner
from conserve_sglang.profiler.point import Point, Sweep
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.sweep import Step, cost_s, point_limit_s, run_sweep

LIMITS = Limits(kv_capacity_tokens=65_536, context_tokens=32_768, chunk_tokens=512, max_batch=32)
POINTS = candidates(LIMITS, frozenset(Sweep))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Measuring:
    """Takes virtual time; refuses and breaks as told."""

    def __init__(self, clock: Clock, each_s: float = 4.0) -> None:
        self._clock, self._each_s = clock, each_s
        self.measured: list[Point] = []
        self.rules: list[StopRule] = []
        self.refuses: Point | None = None
        self.breaks_after: int | None = None

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        if len(self.measured) == self.breaks_after:
            raise Unreachable("the worker is gone")
        if point == self.refuses:
            raise NotCapable("too long")
        self._clock.now += self._each_s
        self.measured.append(point)
        self.rules.append(rule)
        return Outcome(point=point, took_s=self._each_s, seconds=0.01, num_repeats=6)


def sweep(
    path: Path,
    *,
    budget_s: float | None = None,
    each_s: float = 4.0,
    breaks_after: int | None = None,
) -> tuple[Measuring, list[Step], Journal]:
    clock = Clock()
    measuring = Measuring(clock, each_s)
    measuring.breaks_after = breaks_after
    steps: list[Step] = []
    journal = Journal(path, {"gpu": "A40"})
    journal.begin(None)
    work = run_sweep(
        Planner(POINTS),
        dict.fromkeys(Sweep, measuring),
        journal,
        budget_s=budget_s,
        report=steps.append,
        clock=clock,
    )
    try:
        asyncio.run(work)
    except Unreachable:
        assert breaks_after is not None
    return measuring, steps, journal


def test_all_points_are_measured_without_a_budget(tmp_path: Path) -> None:
    measuring, steps, _ = sweep(tmp_path / "j")
    assert sorted(measuring.measured) == sorted(POINTS)
    assert (steps[-1].now, steps[-1].num_left, steps[-1].left_s) == (None, 0, 0.0)


def test_a_budget_is_not_overrun(tmp_path: Path) -> None:
    measuring, steps, _ = sweep(tmp_path / "j", budget_s=60.0)
    assert 10 <= len(measuring.measured) <= 15
    assert steps[-1].elapsed_s <= 60
    assert {p.sweep for p in measuring.measured} == {sweep.value for sweep in Sweep}


def test_a_point_that_takes_all_day_is_given_up_with_the_budget(tmp_path: Path) -> None:
    class Endless(Measuring):
        async def measure(self, point: Point, rule: StopRule) -> Outcome:
            await asyncio.sleep(60)
            raise AssertionError

    journal = Journal(tmp_path / "j", {})
    journal.begin(None)
    work = run_sweep(
        Planner(POINTS),
        dict.fromkeys(Sweep, Endless(Clock())),
        journal,
        budget_s=2.1,
        report=lambda step: None,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("conserve_sglang.profiler.sweep._OVERRUN_S", -2.0)
        asyncio.run(work)
    assert journal.outcomes == []


def test_a_point_gets_a_share_of_the_budget() -> None:
    assert point_limit_s(None) == 20
    assert point_limit_s(480) == 16
    assert point_limit_s(6) == 2


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    first, _, _ = sweep(tmp_path / "j", breaks_after=7)
    second, steps, journal = sweep(tmp_path / "j")
    assert steps[0].num_done == 7
    assert not set(first.measured) & set(second.measured)
    assert sorted(first.measured + second.measured) == sorted(POINTS)
    assert journal.num_found == 7


def test_what_is_refused_is_noted_and_not_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    measuring = Measuring(clock)
    measuring.refuses = POINTS[3]
    journal = Journal(tmp_path / "j", {})
    journal.begin(None)
    planner = Planner(POINTS[:6])
    work = run_sweep(
        planner,
        dict.fromkeys(Sweep, measuring),
        journal,
        budget_s=None,
        report=lambda step: None,
        clock=clock,
    )
    asyncio.run(work)
    failed = [one for one in journal.outcomes if one.failure]
    assert [(one.point, one.failure) for one in failed] == [(POINTS[3], "too long")]
    assert len(journal.outcomes) == 6


def test_the_time_left_shrinks_to_nothing(tmp_path: Path) -> None:
    _, steps, _ = sweep(tmp_path / "j", budget_s=100.0)
    left = [step.left_s for step in steps if step.left_s is not None]
    assert left == sorted(left, reverse=True)
    assert left[0] == 100.0


def test_a_larger_point_is_thought_to_take_longer() -> None:
    small = Point(sweep="prefill", new_tokens=1024)
    large = Point(sweep="prefill", new_tokens=8192)
    known = [Outcome(point=small, took_s=2.0, prepare_s=0.5, seconds=0.1)]
    assert cost_s(large, known, 10.0) == pytest.approx(1.5 * 0.5 * 64 + 10.0)
    assert cost_s(Point(sweep="prefill", new_tokens=64), known) == pytest.approx(0.75 + 1.5)


def test_the_cost_is_told_from_the_most_similar_point() -> None:
    known = [
        Outcome(point=Point(sweep="prefill", new_tokens=2**n), took_s=n, prepare_s=n, seconds=0.1)
        for n in (4, 10)
    ]
    assert cost_s(Point(sweep="prefill", new_tokens=2**9), known) == pytest.approx(1.5 * 10)
    known.append(Outcome(point=Point(sweep="prefill", new_tokens=512), took_s=99.0, failure="no"))
    assert cost_s(Point(sweep="prefill", new_tokens=2**9), known) == pytest.approx(1.5 * 10)


def test_a_point_that_would_take_minutes_waits_for_what_lies_between(tmp_path: Path) -> None:
    """A quadratic worker: the longest prompts are never begun, the others all are."""
    points = [Point(sweep="prefill", new_tokens=2**n) for n in range(4, 16)]
    clock = Clock()

    class Quadratic(Measuring):
        async def measure(self, point: Point, rule: StopRule) -> Outcome:
            each_s = 1e-7 * point.new_tokens**2
            self.measured.append(point)
            clock.now += 10 * each_s
            return Outcome(point=point, took_s=10 * each_s, prepare_s=3 * each_s, seconds=each_s)

    measuring = Quadratic(clock)
    journal = Journal(tmp_path / "j", {})
    journal.begin(None)
    steps: list[Step] = []
    work = run_sweep(
        Planner(points),
        dict.fromkeys(Sweep, measuring),
        journal,
        budget_s=None,
        report=steps.append,
        clock=clock,
    )
    asyncio.run(work)
    assert max(p.new_tokens for p in measuring.measured) == 8192
    assert steps[-1].num_left == 2


def test_time_left_goes_to_the_points_that_are_least_sure(tmp_path: Path) -> None:
    points = [Point(sweep="prefill", new_tokens=2**n) for n in range(4, 8)]
    doubts = dict(zip(points, (0.01, 0.3, None, 0.05), strict=True))
    clock = Clock()

    class Unsure(Measuring):
        async def measure(self, point: Point, rule: StopRule) -> Outcome:
            rel_ci = 0.02 if point in self.measured else doubts[point]
            outcome = await super().measure(point, rule)
            return replace(outcome, rel_ci=rel_ci, seconds=0.5 if rel_ci == 0.02 else 0.1)

    measuring = Unsure(clock, 1.0)
    journal = Journal(tmp_path / "j", {})
    journal.begin(None)
    work = run_sweep(
        Planner(points),
        dict.fromkeys(Sweep, measuring),
        journal,
        budget_s=99.0,
        report=lambda step: None,
        clock=clock,
    )
    asyncio.run(work)
    assert measuring.measured[4:] == [points[2], points[1], points[3]]
    best = surest(Journal(tmp_path / "j", {}).outcomes)
    assert [best[p].seconds for p in points] == [0.1, 0.5, 0.5, 0.5]


def test_a_failure_gives_way_to_whatever_was_measured() -> None:
    point = Point(sweep="prefill", new_tokens=16)
    failed = Outcome(point=point, took_s=1.0, failure="no")
    found = Outcome(point=point, took_s=1.0, seconds=0.1)
    assert surest([failed, found])[point] is surest([found, failed])[point] is found
