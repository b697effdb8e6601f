"""Room and patience from what a conversation has shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.policy.api import History
from conserve_sglang.policy.retention import BY_HISTORY, CONSTANT, SOON_S, ByCost

histories = st.none() | st.builds(
    History,
    num_answers=st.integers(0, 9),
    longest_output=st.integers(0, 10_000),
    longest_append=st.integers(0, 100_000),
    num_gaps=st.integers(0, 9),
    gaps_s=st.floats(0, 10_000),
    longest_gap_s=st.floats(0, 10_000),
)


def test_what_was_seen_sets_room_and_patience() -> None:
    history = History(
        longest_output=3000, longest_append=700, num_gaps=2, gaps_s=16.0, longest_gap_s=14.0
    )
    assert BY_HISTORY.output_room(history, 512) == 3000
    assert BY_HISTORY.headroom(history, 512) == 3700
    assert BY_HISTORY.overdue(history, 40.0) == 5.0
    slow = History(longest_output=3000, num_gaps=1, gaps_s=80.0, longest_gap_s=80.0)
    assert BY_HISTORY.headroom(slow, 512) == 0, "it may be long before it needs that room"
    assert BY_HISTORY.overdue(slow, 40.0) == 0.5


def test_before_anything_was_seen_the_settings_hold() -> None:
    assert BY_HISTORY.output_room(None, 512) == BY_HISTORY.headroom(None, 512) == 512
    assert BY_HISTORY.overdue(History(num_answers=1), SOON_S) == 1.0


@given(history=histories, usual=st.integers(0, 4096), rested_s=st.floats(0, 100))
def test_bounds(history: History | None, usual: int, rested_s: float) -> None:
    assert BY_HISTORY.output_room(history, usual) >= usual
    assert BY_HISTORY.headroom(history, usual) >= 0
    assert BY_HISTORY.overdue(history, rested_s + 1) > BY_HISTORY.overdue(history, rested_s) >= 0
    assert CONSTANT.output_room(history, usual) == usual
    assert CONSTANT.headroom(history, usual) == 0
    assert CONSTANT.overdue(history, rested_s) == rested_s


def test_kv_is_kept_as_long_as_bringing_it_back_would_hold_others_up() -> None:
    worth = ByCost(2.0).patience_s_per_token
    assert worth(50e-6, 0, 0) == 50e-6, "its own prefill"
    assert worth(50e-6, 3, 0) == pytest.approx(350e-6), "three stalls, late twice each"
    assert worth(50e-6, 3, 1.5) == pytest.approx(425e-6), "and those who wait for room"
    assert ByCost(1.0).patience_s_per_token(50e-6, 3, 0) == pytest.approx(200e-6)
    assert ByCost(2.0).output_room(None, 512) == 512
    assert ByCost(2.0).headroom(None, 512) == 0
