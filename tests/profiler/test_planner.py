"""The order of measuring: the widest gap first, and whole rows."""

import itertools
import math

import pytest

from conserve_sglang.profiler.grid import DECODE_ROOM, Limits, candidates
from conserve_sglang.profiler.planner import Planner, farthest_first
from conserve_sglang.profiler.point import Point, Sweep

SMALL = Limits(kv_capacity_tokens=65_536, context_tokens=32_768, chunk_tokens=512, max_batch=32)
ALL = frozenset(Sweep)


def lengths(*values: int) -> list[Point]:
    return [Point(sweep="prefill", new_tokens=value) for value in values]


def order(planner: Planner) -> list[Point]:
    found = []
    while (point := planner.next()) is not None:
        found.append(point)
        planner.done(point)
    return found


def test_a_line_is_taken_at_its_ends_then_in_its_middle() -> None:
    planner = Planner(lengths(16, 32, 64, 128, 256))
    assert [p.new_tokens for p in order(planner)] == [16, 256, 64, 32, 128]


@pytest.mark.parametrize("count", range(2, 7))
def test_the_gaps_left_are_at_most_twice_the_best_possible(count: int) -> None:
    """Gonzalez' bound, against every choice of as many out of ten uneven values."""
    values = [0.0, 0.3, 1.0, 1.1, 2.0, 2.7, 3.0, 4.4, 5.0, 6.0]

    def widest(chosen: tuple[float, ...]) -> float:
        return max(min(abs(value - c) for c in chosen) for value in values)

    best = min(widest(chosen) for chosen in itertools.combinations(values, count))
    assert widest(tuple(farthest_first(values)[:count])) <= 2 * best


def test_every_candidate_is_taken_once() -> None:
    points = candidates(SMALL, ALL)
    taken = order(Planner(points))
    assert sorted(taken) == sorted(points)
    assert len(set(taken)) == len(taken)


def test_every_sweep_has_begun_before_any_is_refined() -> None:
    taken = order(Planner(candidates(SMALL, ALL)))
    assert {p.sweep for p in taken[: len(Sweep)]} == {sweep.value for sweep in Sweep}
    assert {p.sweep for p in taken[len(Sweep) : 18]} == {sweep.value for sweep in Sweep}


@pytest.mark.parametrize("num_points", range(3, 30))
def test_a_row_that_has_begun_reaches_from_end_to_end(num_points: int) -> None:
    """Wherever the sweep is cut: at most the last row has one point where it could have more."""
    points = candidates(SMALL, frozenset({Sweep.DECODE}))
    possible, taken = (
        {batch: [p for p in some if p.batch == batch] for batch in {p.batch for p in points}}
        for some in (points, order(Planner(points))[:num_points])
    )
    short = [b for b, row in taken.items() if len(row) == 1 and len(possible[b]) > 1]
    assert len(short) <= 1
    for batch, row in taken.items():
        if len(row) > 1 and len(possible[1]) == len(possible[batch]):
            assert max(p.kv_tokens for p in row) == max(p.kv_tokens for p in possible[batch])


def test_what_was_measured_before_an_interruption_counts() -> None:
    points = candidates(SMALL, ALL)
    whole = order(Planner(points))
    resumed = Planner(points)
    for point in whole[:20]:
        resumed.done(point)
    assert order(resumed) == whole[20:]


def test_what_cannot_be_afforded_is_passed_over_and_kept() -> None:
    planner = Planner(lengths(16, 4096))
    assert planner.next(lambda p: p.new_tokens < 1000) == lengths(16)[0]
    planner.done(lengths(16)[0])
    assert planner.next(lambda p: p.new_tokens < 1000) is None
    assert planner.left == tuple(lengths(4096))


@pytest.mark.parametrize("capacity", [2048, 65_536, 2_000_000])
def test_no_candidate_is_larger_than_the_worker(capacity: int) -> None:
    limits = Limits(
        kv_capacity_tokens=capacity, context_tokens=32_768, chunk_tokens=2048, max_batch=256
    )
    points = candidates(limits, ALL)
    assert points
    for point in points:
        room = point.batch * DECODE_ROOM if point.sweep == "decode" else 0
        assert point.longest * point.batch + room <= capacity
        assert point.longest < limits.context_tokens
        if point.sweep == "prefill" and point.batch > 1:
            assert point.batch * point.new_tokens <= limits.chunk_tokens


def test_only_the_sweeps_asked_for() -> None:
    assert {p.sweep for p in candidates(SMALL, frozenset({Sweep.DECODE}))} == {"decode"}


def test_axes_are_octaves() -> None:
    assert Point(sweep="decode", batch=4, kv_tokens=4096).axes == (2.0, 10.0)
    assert Point(sweep="append", new_tokens=16, cached_tokens=1024).axes == (10.0, 4.0)
    assert Point(sweep="prefill", new_tokens=1024).axes == (0.0, math.log2(1024))
