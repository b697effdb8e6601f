"""Room and patience from what a conversation has shown."""

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.policy.api import History
from conserve_sglang.policy.retention import BY_HISTORY, CONSTANT, MAX_PATIENCE_S

histories = st.none() | st.builds(
    History,
    num_answers=st.integers(0, 9),
    longest_output=st.integers(0, 10_000),
    longest_append=st.integers(0, 100_000),
    num_gaps=st.integers(0, 9),
    longest_gap_s=st.floats(0, 10_000),
)


def test_what_was_seen_sets_room_and_patience() -> None:
    history = History(longest_output=3000, longest_append=700, num_gaps=2, longest_gap_s=20.0)
    assert BY_HISTORY.output_room(history, 512) == 3000
    assert BY_HISTORY.headroom(history, 512) == 3700
    assert BY_HISTORY.patience_s(history, 15.0) == 40.0


def test_before_anything_was_seen_the_settings_hold() -> None:
    assert BY_HISTORY.output_room(None, 512) == BY_HISTORY.headroom(None, 512) == 512
    assert BY_HISTORY.patience_s(History(num_answers=1), 15.0) == 15.0


@given(history=histories, usual=st.integers(0, 4096), usual_s=st.floats(0, 100))
def test_bounds(history: History | None, usual: int, usual_s: float) -> None:
    assert BY_HISTORY.headroom(history, usual) >= BY_HISTORY.output_room(history, usual) >= usual
    assert 0 <= BY_HISTORY.patience_s(history, usual_s) <= MAX_PATIENCE_S
    assert CONSTANT.output_room(history, usual) == usual
    assert CONSTANT.headroom(history, usual) == 0
    assert CONSTANT.patience_s(history, usual_s) == usual_s
