"""A bound on running turns, as the power controller sets it."""

import pytest

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch import RunningBounded, SendTurn, TurnAbandoned
from tests.builders import Desk, an_arrival
from tests.dispatch.talk import finish, sent
from tests.dispatch.test_draining import settled


def test_new_turns_wait_while_as_many_run_as_may_and_go_on_in_order() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(RunningBounded(num_turns=2))
    sent(desk.tell(an_arrival(1, "a")))
    sent(desk.tell(an_arrival(2, "b")))
    assert desk.tell(an_arrival(3, "c")) == []
    assert desk.tell(an_arrival(4, "d")) == []
    assert sent(finish(desk, 1)).turn_id == TurnId(3)
    assert sent(desk.tell(TurnAbandoned(turn_id=TurnId(3)))).turn_id == TurnId(4)


def test_a_conversation_whose_kv_is_there_goes_on() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(RunningBounded(num_turns=1))
    sent(desk.tell(an_arrival(2, "b")))
    assert sent(desk.tell(an_arrival(3, "a", 1100))).prefiller is None


def test_what_runs_is_not_stopped_and_no_bound_lets_all_go() -> None:
    desk = Desk("p0", "d0", "d1")
    for turn in (1, 2, 3):
        sent(desk.tell(an_arrival(turn, f"c{turn}")))
    assert desk.tell(RunningBounded(num_turns=1)) == []
    assert desk.tell(an_arrival(4, "c4")) == []
    assert desk.tell(an_arrival(5, "c5")) == []
    let_go = desk.tell(RunningBounded(num_turns=None))
    assert [c.turn_id for c in let_go if isinstance(c, SendTurn)] == [TurnId(4), TurnId(5)]


def test_at_least_one_turn_may_run() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RunningBounded(num_turns=0)
