"""Workers that take no turns for now, take a few on trial, or leave for good."""

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    AbortTurn,
    Command,
    FailureCause,
    FirstToken,
    ReleaseConversation,
    TurnDone,
    TurnFailed,
    WorkerAdmitted,
    WorkerDraining,
    WorkerLost,
    WorkerRemoved,
    WorkerUp,
)
from conserve_sglang.policy.api import PhaseOneCause, PlacementReason
from tests.builders import D0, D1, P0, P1, Desk, a_worker, an_arrival
from tests.dispatch.talk import finish, sent


def settled(*workers: str) -> Desk:
    """One conversation "a" on d0, turn 1 answered."""
    desk = Desk(*workers)
    desk.tell(an_arrival(1))
    finish(desk, 1)
    return desk


def drain(desk: Desk, worker_id: WorkerId) -> list[Command]:
    return desk.tell(WorkerDraining(worker_id=worker_id))


def test_new_conversations_go_past_a_draining_decoder() -> None:
    desk = Desk("p0", "d0", "d1")
    drain(desk, D0)
    assert [sent(desk.tell(an_arrival(i, f"c{i}"))).decoder for i in range(3)] == [D1] * 3


def test_next_turn_of_a_conversation_there_is_a_phase_one_elsewhere() -> None:
    desk = settled("p0", "d0", "d1")
    assert drain(desk, D0) == []
    commands = desk.tell(an_arrival(2, tokens=1100))
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0)
    command = sent(commands)
    assert (command.prefiller, command.decoder) == (P0, D1)
    assert command.reason is PlacementReason.DRAINED


def test_cause_is_kept_when_the_phase_one_elsewhere_is_tried_again() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(WorkerDraining(worker_id=D0, cause=PhaseOneCause.DECODER_LOST))
    desk.tell(an_arrival(2, tokens=1100))
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.PREFILLER_FAILED)))
    assert again.reason is PlacementReason.DECODER_LOST


def test_nothing_has_moved_when_it_is_admitted_before_the_next_turn() -> None:
    desk = settled("p0", "d0", "d1")
    drain(desk, D0)
    desk.tell(WorkerAdmitted(worker_id=D0))
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (command.decoder, command.reason) == (D0, PlacementReason.PINNED)


def test_running_turn_finishes_where_it_runs_and_its_books_close() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    assert desk.dispatcher.running_turns() == {D0: 1}
    assert drain(desk, D0) == []
    finish(desk, 2, prompt=1100)
    assert not desk.dispatcher.running_turns()
    assert sent(desk.tell(an_arrival(3, tokens=1200))).decoder == D1


def test_phase_one_counts_as_running_at_both_until_its_first_token() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    assert desk.dispatcher.running_turns() == {P0: 1, D0: 1}
    desk.tell(FirstToken(turn_id=TurnId(1)))
    assert desk.dispatcher.running_turns() == {D0: 1}


def test_turn_held_behind_a_running_one_moves_on() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2))
    drain(desk, D0)
    command = sent(desk.tell(FirstToken(turn_id=TurnId(1))))
    assert (command.turn_id, command.decoder) == (TurnId(2), D1)
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=9, output_tokens=1, cached_tokens=0))
    loads = {load.worker_id: load for load in desk.dispatcher.worker_loads()}
    assert loads[D0].resident_tokens == 0


def test_draining_prefiller_gets_no_phase_one() -> None:
    desk = Desk("p0", "p1", "d0")
    drain(desk, P0)
    assert [sent(desk.tell(an_arrival(i, f"c{i}"))).prefiller for i in range(3)] == [P1] * 3


def test_turns_wait_while_the_only_decoder_drains_and_go_when_it_is_admitted() -> None:
    desk = Desk("p0", "d0")
    drain(desk, D0)
    assert desk.tell(an_arrival(1)) == []
    assert sent(desk.tell(WorkerAdmitted(worker_id=D0))).decoder == D0


def test_trial_turns_are_counted() -> None:
    desk = Desk("p0", "d0", "d1")
    drain(desk, D0)
    desk.tell(an_arrival(0, "x", 3000))
    desk.tell(WorkerAdmitted(worker_id=D0, num_turns=2))
    decoders = [sent(desk.tell(an_arrival(i, f"c{i}"))).decoder for i in range(1, 5)]
    assert decoders == [D0, D0, D1, D1]
    desk.tell(WorkerAdmitted(worker_id=D0))
    assert sent(desk.tell(an_arrival(9, "z"))).decoder == D0


def test_pinned_conversation_may_be_the_trial() -> None:
    desk = settled("p0", "d0", "d1")
    drain(desk, D0)
    desk.tell(WorkerAdmitted(worker_id=D0, num_turns=1))
    assert sent(desk.tell(an_arrival(2, tokens=1100))).reason is PlacementReason.PINNED
    finish(desk, 2, 1100)
    assert sent(desk.tell(an_arrival(3, tokens=1200))).decoder == D1


def test_removed_worker_is_forgotten_and_its_turns_stop() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    assert desk.tell(WorkerRemoved(worker_id=D0)) == [AbortTurn(turn_id=TurnId(2))]
    assert [load.worker_id for load in desk.dispatcher.worker_loads()] == [P0, D1]
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.DECODER_REMOVED)))
    assert (again.decoder, again.reason) == (D1, PlacementReason.WORKER_REMOVED)


def test_conversation_of_a_drained_worker_that_left_says_so() -> None:
    desk = settled("p0", "d0", "d1")
    drain(desk, D0)
    desk.tell(WorkerLost(worker_id=D0, cause=PhaseOneCause.DRAINED))
    desk.tell(WorkerRemoved(worker_id=D0))
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (command.decoder, command.reason) == (D1, PlacementReason.DRAINED)


def test_pins_of_a_removed_worker_do_not_hold_for_the_next_of_its_name() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(WorkerRemoved(worker_id=D0))
    desk.tell(WorkerUp(spec=a_worker("d0", 50_000)))
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (command.decoder, command.reason) == (D0, PlacementReason.WORKER_REMOVED)
    assert command.prefiller == P0


def test_place_of_a_removed_worker_is_taken_again() -> None:
    desk = Desk("p0", "d0")
    for name in ("d1", "d2", "d3"):
        desk.tell(WorkerRemoved(worker_id=WorkerId("d0")))
        desk.tell(WorkerUp(spec=a_worker(name)))
        desk.tell(WorkerUp(spec=a_worker("d0")))
        desk.tell(WorkerRemoved(worker_id=WorkerId(name)))
    assert len(desk.dispatcher._bookings.ledger._by_order) == 3
    assert sent(desk.tell(an_arrival(1))).decoder == D0


def test_turn_is_not_tried_again_where_it_failed_while_another_worker_takes_it() -> None:
    desk = Desk("p0", "p1", "d0", "d1")
    assert sent(desk.tell(an_arrival(1))).decoder == D0
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.DECODER_FAILED)))
    assert (again.prefiller, again.decoder) == (P0, D1)
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFILLER_FAILED)))
    assert (again.prefiller, again.decoder) == (P1, D1)


def test_turn_is_tried_again_where_it_failed_when_there_is_no_other() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.DECODER_FAILED)))
    assert (again.prefiller, again.decoder) == (P0, D0)
