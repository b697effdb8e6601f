"""Generators, arrivals and scaling keep what they say."""

import random
from itertools import islice

import pytest

from conserve_sglang.workload import (
    CLAUDE_CODE,
    ConversationPlan,
    TurnPlan,
    at_load,
    at_rate,
    cut_to_window,
    drawn_gaps,
    first_turns,
    gamma_arrivals,
    mini_swe_conversations,
    poisson_arrivals,
    shape_of,
    trace_arrivals,
    with_arrivals,
    with_gaps,
    with_gaps_scaled,
)
from tests.sim.builders import a_plan


def plan(*lengths: tuple[int, int], at: float = 0.0, gap: float = 0.0) -> ConversationPlan:
    return a_plan(f"c{at}", *lengths, at=at, gap_s=gap)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_tokens": 0, "output_tokens": 1}, "at least one token"),
        ({"input_tokens": 1, "output_tokens": 0}, "at least one token"),
        ({"input_tokens": 5, "output_tokens": 1, "shared_tokens": 6}, "within the prompt"),
        ({"input_tokens": 5, "output_tokens": 1, "gap_s": -1.0}, "not be negative"),
    ],
)
def test_an_impossible_turn_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnPlan(**values)  # type: ignore[arg-type]


def test_the_generator_has_the_lengths_it_was_fitted_to() -> None:
    shape = shape_of(mini_swe_conversations(3000, random.Random(1)))
    first, output = shape.first_input_tokens, shape.output_tokens
    assert first is not None
    assert output is not None
    assert shape.append_tokens is not None
    assert first.p5 == pytest.approx(12_240, rel=0.05)
    assert first.p50 == pytest.approx(15_889, rel=0.02)
    assert first.p95 == pytest.approx(17_295, rel=0.02)
    assert shape.append_tokens.p50 == 67
    assert shape.num_turns == 15_000


def test_the_generator_is_the_same_for_the_same_seed() -> None:
    one, two = (list(mini_swe_conversations(20, random.Random(5))) for _ in range(2))
    assert one == two
    assert one != list(mini_swe_conversations(20, random.Random(6)))


@pytest.mark.parametrize("cv", [None, 1.0, 3.0])
def test_arrivals_have_the_rate_asked_for(cv: float | None) -> None:
    rng = random.Random(2)
    times = poisson_arrivals(4.0, rng) if cv is None else gamma_arrivals(4.0, cv, rng)
    last = list(islice(times, 20_000))[-1]
    assert 20_000 / last == pytest.approx(4.0, rel=0.05)


def test_a_trace_is_stretched_to_a_rate() -> None:
    plans = [plan((10, 1), at=at) for at in (100.0, 130.0, 200.0)]
    assert [p.arrived_at_s for p in at_rate(plans, 0.5)] == pytest.approx([0.0, 1.2, 4.0])
    with pytest.raises(ValueError, match="no spread"):
        at_rate(plans[:1], 0.5)


def test_conversations_are_cut_by_turns_and_by_window() -> None:
    whole = plan((100, 10), (20, 10), (20, 10))
    assert [len(p.turns) for p in first_turns([whole], 2)] == [2]
    assert [len(p.turns) for p in cut_to_window([whole, plan((500, 1))], 145)] == [2]


def test_arrivals_are_given_in_order() -> None:
    plans = with_arrivals([plan((1, 1)), plan((2, 1))], iter([0.5, 0.75]))
    assert [p.arrived_at_s for p in plans] == [0.5, 0.75]


def test_the_shape_counts_uncached_prefill() -> None:
    shape = shape_of([plan((1000, 10), (3000, 10), (96, 10), gap=61.0)])
    assert shape.first_turn_share == 1000 / 4096
    assert shape.large_append_share == 0.5
    assert shape.large_append_work == 3000 / 3096
    assert shape.gap_over_60_s_share == 1.0
    assert shape.gap_over_300_s_share == 0.0


def test_the_shape_of_nothing_is_empty() -> None:
    assert shape_of([]).num_turns == 0
    assert shape_of([]).append_tokens is None


def test_recorded_arrivals_begin_anew_after_a_mean_gap() -> None:
    times = trace_arrivals([10.0, 11.0, 14.0])
    assert list(islice(times, 6)) == pytest.approx([0.0, 1.0, 4.0, 6.0, 7.0, 10.0])
    stretched = trace_arrivals([10.0, 11.0, 14.0], 4.0)
    assert list(islice(stretched, 30_001))[-1] == pytest.approx(7500.0)
    with pytest.raises(ValueError, match="need some spread"):
        next(trace_arrivals([3.0]))


def test_tool_gaps_are_drawn_for_all_turns_but_the_first() -> None:
    rng = random.Random(4)
    gaps = drawn_gaps(CLAUDE_CODE.fresh.tool_gap_s, rng)
    plans = list(with_gaps([plan(*[(5, 5)] * 2001)], gaps))
    drawn = sorted(turn.gap_s for turn in plans[0].turns[1:])
    assert plans[0].turns[0].gap_s == 0.0
    assert drawn[1000] == pytest.approx(8.71, rel=0.1)  # the sessions' median


def test_gaps_and_load_are_scaled() -> None:
    (slow,) = with_gaps_scaled([plan((5, 5), (5, 5), gap=3.0)], 2.0)
    assert [turn.gap_s for turn in slow.turns] == [0.0, 6.0]
    (dense,) = at_load([plan((5, 5), at=3.0)], 2.0)
    assert dense.arrived_at_s == 1.5
    for scale in (at_load([plan((5, 5))], 0.0), with_gaps_scaled([plan((5, 5))], -1.0)):
        with pytest.raises(ValueError, match="factor must"):
            list(scale)
