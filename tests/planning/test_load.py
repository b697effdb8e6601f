"""Samples of a load: other seeds, other samples; a trace keeps its rhythm however long it plays."""

from dataclasses import replace
from itertools import pairwise

import pytest

from conserve_sglang.planning.load import Load
from tests.planning.builders import conversations

PLANS = tuple(conversations(50))
GAPS = (1.0, 1.0, 8.0, 2.0, 3.0)


def a_load(*, has_own_times: bool) -> Load:
    times = [sum(GAPS[:number]) for number in range(len(GAPS))] if has_own_times else [0.0] * 50
    plans = tuple(replace(plan, arrived_at_s=at) for plan, at in zip(PLANS, times, strict=False))
    return Load(conversations=plans, rate_per_s=1.0, has_own_times=has_own_times, seed=0, source="")


def test_each_seed_has_an_order_of_its_own_and_plays_all_of_them() -> None:
    load = a_load(has_own_times=False)
    samples = [[plan.turns for plan in load.sample(50, 1.0, seed)] for seed in (0, 1)]
    assert samples[0] != samples[1]
    assert sorted(samples[0], key=repr) == sorted(samples[1], key=repr)
    assert samples[0] == [plan.turns for plan in load.sample(50, 1.0, 0)]
    assert len({plan.conversation_id for plan in load.sample(120, 1.0, 0)}) == 120


def test_evenly_spaced_conversations_come_at_the_rate() -> None:
    times = [
        plan.arrived_at_s for plan in a_load(has_own_times=True).sample(9, 4.0, 0, is_even=True)
    ]
    assert [later - sooner for sooner, later in pairwise(times)] == pytest.approx([0.25] * 8)


def test_a_trace_is_played_on_in_its_rhythm_from_where_the_seed_says() -> None:
    load = a_load(has_own_times=True)
    starts = set()
    for seed in range(8):
        played = list(load.sample(12, 1.0, seed))
        start = next(n for n, plan in enumerate(PLANS) if plan.turns == played[0].turns)
        starts.add(start)
        wanted = [PLANS[(start + number) % 5].turns for number in range(12)]
        assert [plan.turns for plan in played] == wanted
        gaps = [b.arrived_at_s - a.arrived_at_s for a, b in pairwise(played)]
        assert sum(gaps) == pytest.approx(11.0)
        longest = [n for n, gap in enumerate(gaps) if gap == pytest.approx(max(gaps))]
        assert {(start + number) % 5 for number in longest} == {2}
    assert len(starts) > 1
