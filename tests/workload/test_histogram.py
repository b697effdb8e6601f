"""Bins hold every value once, and none is left out between."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.workload import (
    ConversationPlan,
    TurnPlan,
    histograms_of,
    mini_swe_conversations,
)
from conserve_sglang.workload.histogram import bins_of


def triples(*values: float) -> list[tuple[float, float, int]]:
    return [(found.low, found.high, found.count) for found in bins_of(values)]


def test_bins_go_by_one_two_five_and_stand_without_holes() -> None:
    assert triples(1, 1.9, 2, 9.9) == [(1, 2, 2), (2, 5, 1), (5, 10, 1)]
    assert triples(100, 700) == [(100, 200, 1), (200, 500, 0), (500, 1000, 1)]


def test_the_least_values_share_the_first_bin() -> None:
    assert triples(0.0, 0.09) == [(0.0, 0.1, 2)]
    assert triples() == []


@given(st.lists(st.floats(0, 1e10), max_size=50))
def test_every_value_lies_in_one_bin(values: list[float]) -> None:
    bins = list(bins_of(values))
    for found in bins:
        assert found.count == sum(found.low <= value < found.high for value in values)
    assert sum(found.count for found in bins) == len(values)


def test_each_quantity_counts_what_it_says() -> None:
    turns = (
        TurnPlan(input_tokens=100, output_tokens=10),
        TurnPlan(input_tokens=150, output_tokens=10, shared_tokens=110, gap_s=3.0),
    )
    plan = ConversationPlan(conversation_id=ConversationId("a"), turns=turns)
    found = {h.name: [(b.low, b.count) for b in h.bins] for h in histograms_of([plan])}
    assert found == {
        "turns of a conversation": [(2, 1)],
        "prompt of turn 1": [(100, 1)],
        "prompt": [(100, 2)],
        "append": [(20, 1)],
        "output": [(10, 2)],
        "tool gap": [(2, 1)],
    }


def test_a_workload_is_counted_whole() -> None:
    found = {h.name: h for h in histograms_of(mini_swe_conversations(50, random.Random(1)))}
    assert found["prompt"].num_values == 250
    assert found["append"].num_values == 200
    assert found["tool gap"].unit == "s"


@pytest.mark.parametrize("name", ["prompt", "append"])
def test_no_conversations_have_no_bins(name: str) -> None:
    assert {h.name: h for h in histograms_of([])}[name].bins == ()
