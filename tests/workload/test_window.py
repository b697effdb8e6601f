"""Contexts are scaled to a window by one factor, and what was done is told."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.workload import (
    ConversationPlan,
    TurnPlan,
    longest_context_tokens,
    mini_swe_conversations,
    scaled,
    scaled_to_window,
)


def plan(name: str, *lengths: tuple[int, int, int]) -> ConversationPlan:
    """A conversation of (input, output, shared) turns, 3 s apart."""
    turns = [
        TurnPlan(input_tokens=prompt, output_tokens=out, shared_tokens=shared, gap_s=3.0)
        for prompt, out, shared in lengths
    ]
    return ConversationPlan(
        conversation_id=ConversationId(name), turns=tuple(turns), arrived_at_s=7.0
    )


def lengths_of(found: ConversationPlan) -> list[tuple[int, int, int]]:
    return [(t.input_tokens, t.output_tokens, t.shared_tokens) for t in found.turns]


def test_every_length_shrinks_by_the_same_factor_and_times_stay() -> None:
    result = scaled_to_window([plan("a", (4000, 400, 0), (8000, 2000, 4400))], 1000)
    assert result.factor == 0.1
    assert lengths_of(result.conversations[0]) == [(400, 40, 0), (800, 200, 440)]
    assert result.conversations[0].arrived_at_s == 7.0
    assert [turn.gap_s for turn in result.conversations[0].turns] == [3.0, 3.0]


def test_what_fits_is_left_alone() -> None:
    plans = (plan("a", (400, 40, 0)),)
    assert scaled_to_window(plans, 10_000).conversations == plans
    assert scaled_to_window((), 10_000).conversations == ()


def test_conversations_beyond_the_fitting_share_are_cut_or_left_out_and_counted() -> None:
    plans = [plan(str(n), (900, 100, 0)) for n in range(8)]
    plans += [plan("cut", (400, 100, 0), (4900, 100, 500)), plan("out", (5000, 5000, 0))]
    result = scaled_to_window(plans, 500, fitting=0.8)
    assert result.factor == 0.5
    assert (len(result.conversations), result.num_cut, result.num_left_out) == (9, 1, 1)
    assert lengths_of(result.conversations[-1]) == [(200, 50, 0)]
    assert result.statement() == (
        "all lengths times 0.5, so that 80% of the conversations fit whole in 500 tokens;"
        " of 10, 1 were cut at the window, 1 left out; tool gaps and arrivals as they were"
    )


def test_rounding_does_not_add_up_over_many_turns() -> None:
    context, lengths = 0, []
    for _ in range(300):
        lengths.append((context + 7, 4, context))
        context += 11
    turns = next(scaled([plan("a", *lengths)], 0.3)).turns
    assert turns[-1].input_tokens + turns[-1].output_tokens == round(3300 * 0.3)
    assert all(
        following.shared_tokens == turn.input_tokens + turn.output_tokens
        for turn, following in pairwise(turns)
    )


@given(
    seed=st.integers(0, 10_000),
    window=st.integers(30, 70_000),
    fitting=st.floats(0.1, 1.0),
)
def test_nothing_outgrows_the_window_and_no_turn_becomes_empty(
    seed: int, window: int, fitting: float
) -> None:
    plans = list(mini_swe_conversations(5, random.Random(seed)))
    result = scaled_to_window(plans, window, fitting=fitting)
    assert len(result.conversations) + result.num_left_out == 5
    for found in result.conversations:
        assert longest_context_tokens(found) <= window
        assert all(turn.append_tokens >= 1 and turn.output_tokens >= 1 for turn in found.turns)


@pytest.mark.parametrize(("window", "fitting"), [(1, 1.0), (100, 0.0), (100, 1.1)])
def test_a_window_or_share_that_cannot_be_is_refused(window: int, fitting: float) -> None:
    with pytest.raises(ValueError, match="must"):
        scaled_to_window([plan("a", (4, 4, 0))], window, fitting=fitting)
