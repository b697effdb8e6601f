"""A fleet is judged by the long run: what falls behind is found out, whatever a short run says."""

from dataclasses import replace
from functools import cache

import pytest

from conserve_sglang.core.errors import PlanError
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.judging import (
    MORE_LOAD,
    check_level,
    growth_of,
    how_judged,
    judge,
    num_beyond,
    num_to_judge,
    worst_of,
)
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.request import Targets
from conserve_sglang.planning.score import MOST_GROWTH, WARM_UP, Fleet, Score, play, simulate
from tests.planning.builders import A40, a_request, conversations

TARGETS = Targets(ttfet_s=115.0)
LOAD = Load(
    conversations=tuple(conversations(1000)),
    rate_per_s=1.0,
    has_own_times=False,
    seed=0,
    source="made up",
)
PREFILL, DECODE = A40.config(Role.PREFILL), A40.config(Role.DECODE)
FLEET = Fleet(
    counts={PREFILL: 1, DECODE: 6},
    policy=PolicyChoice(name="conserve", params={"max_local_append_tokens": 2048}),
    hardware={PREFILL: A40, DECODE: A40},
)

REQUEST = a_request(load=LOAD, targets=TARGETS, seed=4, fewest=1000)


def most_carried_per_s() -> float:
    """One prefiller's: the inverse of its mean time for a turn 1."""
    firsts = [plan.turns[0].input_tokens for plan in LOAD.conversations]
    return len(firsts) / sum(A40.perf.prefill(0, tokens) for tokens in firsts)


@cache
def judged() -> tuple[Score, tuple[Score, ...]]:
    return judge(FLEET, REQUEST, 0.5, e2e_s=20.0)


def test_a_fleet_that_falls_behind_passes_a_short_run_and_not_the_judge() -> None:
    rate = most_carried_per_s()
    assert simulate(FLEET, LOAD, rate, TARGETS, seed=0).keeps(TARGETS)
    score, by_seed = judge(
        FLEET, replace(REQUEST, seed=0), rate, 20.0, lambda one: not one.is_steady
    )
    assert len(by_seed) == 1
    assert not score.is_steady
    assert not score.keeps(TARGETS)
    assert "with 5% more load it falls behind" in how_judged(score)
    assert max(one.ttfet_s for one in by_seed) == score.ttfet_s


@pytest.mark.parametrize(("use", "is_steady"), [(0.8, True), (0.92, True), (1.0, False)])
def test_the_turns_under_way_grow_only_where_more_is_asked_than_is_carried(
    use: float, is_steady: bool
) -> None:
    rate = most_carried_per_s() * use * MORE_LOAD
    growth = growth_of(play(FLEET, LOAD, rate, 2000, 0, is_even=True))
    assert (growth <= MOST_GROWTH) is is_steady
    if use > 0.99:
        assert growth == pytest.approx(1 - 1 / MORE_LOAD, abs=0.02)


def test_conversations_that_are_given_up_count_as_falling_behind() -> None:
    rate = most_carried_per_s() * 3
    played = play(FLEET, LOAD, rate, 600, 0, is_even=True)
    assert any(record.outcome.value == "rejected" for record in played.records)
    assert growth_of(played) > 0.3


def test_the_worst_of_the_seeds_is_told_and_a_hopeless_one_ends_it() -> None:
    score, by_seed = judged()
    assert score.runs.seeds == (4, 5, 6)
    assert score.ttfet_s == max(one.ttfet_s for one in by_seed)
    assert score.tokens_per_joule == min(one.tokens_per_joule for one in by_seed)
    assert len({one.ttfet_s for one in by_seed}) == 3
    assert worst_of(by_seed) == score
    assert "seeds 4, 5, 6, of each figure the worst" in how_judged(score)


def test_the_beginning_of_a_run_is_not_counted() -> None:
    played = play(FLEET, LOAD, 0.5, 500, 0)
    assert len(played.counted) == pytest.approx(500 * (1 - 1 / WARM_UP), rel=0.1)
    assert min(one.plan.arrived_at_s for one in played.counted) >= played.arriving_s / WARM_UP


def test_a_run_is_as_long_as_its_conversations_and_its_percentile_need() -> None:
    assert num_to_judge(FLEET, LOAD, 1.0, 0.95, 10.0, 2000) == 2000
    assert num_to_judge(FLEET, LOAD, 1.0, 0.95, 1000.0, 2000) >= 5000
    for level in (0.95, 0.99, 0.995):
        num = num_to_judge(FLEET, LOAD, 1.0, level, 10.0, 2000)
        assert num_beyond(num, level) >= 10
    check_level(LOAD, 0.995)
    with pytest.raises(PlanError, match="of which fewer than 10 would lie beyond it; give 99"):
        check_level(LOAD, 0.9995)


def test_a_run_too_short_to_fill_the_fleet_says_so() -> None:
    score, _ = judged()
    assert score.runs.is_filled
    long = replace(score, e2e_s=score.runs.arriving_s)
    assert "the fleet was still filling up" in how_judged(worst_of([long]))
