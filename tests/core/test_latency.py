"""Metric definitions on hand-computed token times."""

import pytest

from conserve_sglang.core.latency import TurnTimes, conversation_e2e_s, ttfet_s

FIRST = TurnTimes(arrived_at_s=10.0, token_at_s=(12.0, 12.5, 13.5))
LAST = TurnTimes(arrived_at_s=20.0, token_at_s=(20.25,))


def test_turn_metrics() -> None:
    assert FIRST.ttft_s == 2.0
    assert FIRST.e2e_s == 3.5


def test_ttfet_counts_from_turn_one_to_the_last_turns_first_token() -> None:
    assert ttfet_s([FIRST, LAST]) == 10.25
    assert conversation_e2e_s([FIRST, LAST]) == 10.25


def test_ttfet_of_one_turn_is_its_ttft() -> None:
    assert ttfet_s([FIRST]) == FIRST.ttft_s


def test_a_turn_without_output_has_no_latency() -> None:
    with pytest.raises(ValueError, match="without output"):
        TurnTimes(arrived_at_s=0.0, token_at_s=())
