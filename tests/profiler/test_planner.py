"""The order of measuring: the widest gap first, whatever is measured already."""

import itertools
import math

import pytest

from conserve_sglang.profiler.grid import DECODE_ROOM, Limits, candidates
from conserve_sglang.profiler.planner import Planner
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
    planner = Planner(lengths(15, 31, 63, 127, 255))  # one octave apart each
    assert [p.new_tokens for p in order(planner)][:3] == [15, 255, 63]


def test_every_candidate_is_taken_once() -> None:
    points = candidates(SMALL, ALL)
    taken = order(Planner(points))
    assert sorted(taken) == sorted(points)
    assert len(set(taken)) == len(taken)


def test_every_sweep_has_begun_before_any_is_refined() -> None:
    taken = order(Planner(candidates(SMALL, ALL)))
    assert {p.sweep for p in taken[:4]} == {sweep.value for sweep in Sweep}
    assert max(itertools.accumulate(p.sweep == "prefill" for p in taken[:12])) == 3


def test_what_was_measured_before_an_interruption_counts() -> None:
    points = candidates(SMALL, ALL)
    whole = order(Planner(points))
    resumed = Planner(points)
    for point in whole[:20]:
        resumed.done(point)
    assert order(resumed) == whole[20:]


def test_the_gaps_left_are_at_most_twice_the_best_possible() -> None:
    """Gonzalez' bound, against every choice of four out of a line of nine."""
    points = lengths(*(2**n - 1 for n in range(4, 13)))
    taken = [p.place[0] for p in order(Planner(points))[:4]]

    def widest(chosen: tuple[float, ...] | list[float]) -> float:
        return max(min(abs(p.place[0] - c) for c in chosen) for p in points)

    best = min(widest(c) for c in itertools.combinations([p.place[0] for p in points], 4))
    assert widest(taken) <= 2 * best


def test_what_cannot_be_afforded_is_passed_over_and_kept() -> None:
    planner = Planner(lengths(15, 4095))
    assert planner.next(lambda p: p.new_tokens < 1000) == lengths(15)[0]
    planner.done(lengths(15)[0])
    assert planner.next(lambda p: p.new_tokens < 1000) is None
    assert planner.left == tuple(lengths(4095))


@pytest.mark.parametrize("capacity", [2048, 65_536, 2_000_000])
def test_no_candidate_is_larger_than_the_worker(capacity: int) -> None:
    limits = Limits(
        kv_capacity_tokens=capacity, context_tokens=32_768, chunk_tokens=2048, max_batch=256
    )
    points = candidates(limits, ALL)
    assert points
    for point in points:
        room = point.batch * DECODE_ROOM if point.sweep == "decode" else 0
        assert point.work + room <= capacity
        longest = point.new_tokens + point.cached_tokens + point.kv_tokens // point.batch
        assert longest < limits.context_tokens
        if point.sweep == "prefill" and point.batch > 1:
            assert point.batch * point.new_tokens <= limits.chunk_tokens


def test_only_the_sweeps_asked_for() -> None:
    assert {p.sweep for p in candidates(SMALL, frozenset({Sweep.DECODE}))} == {"decode"}


def test_places_are_octaves() -> None:
    assert Point(sweep="prefill", new_tokens=1023).place[0] == math.log2(1024)
