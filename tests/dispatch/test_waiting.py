"""Turns that have to wait: for room, for a prefiller, behind their own conversation."""

from dataclasses import replace

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.dispatch import (
    ConversationEnded,
    DispatchSettings,
    FailureCause,
    FirstToken,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnAbandoned,
    TurnFailed,
    WorkerDraining,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from tests.builders import D0, D1, P0, Desk, a_worker, an_arrival
from tests.dispatch.talk import finish, rejected, sent, settled


def test_full_decoders_make_turns_wait_in_arrival_order() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1, "a", 8000))
    assert desk.tell(an_arrival(2, "b", 5000)) == []
    assert desk.tell(an_arrival(3, "c", 1000)) == [], "a small one does not overtake"
    finish(desk, 1, prompt=8000)
    commands = desk.tell(ConversationEnded(conversation_id=ConversationId("a")))
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0)
    assert [c.turn_id for c in commands if isinstance(c, SendTurn)] == [2, 3]


def test_pinned_turns_do_not_wait_behind_turns_without_room() -> None:
    desk = settled("p0", "d0")
    assert desk.tell(an_arrival(5, "b", 9500)) == []
    assert sent(desk.tell(an_arrival(2, tokens=1100))).reason is PlacementReason.PINNED


def test_queue_is_bounded() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(max_phase_one_turns=1))
    desk.tell(an_arrival(1, "a", 9000))
    assert desk.tell(an_arrival(2, "b", 9000)) == []
    assert rejected(desk.tell(an_arrival(3, "c", 9000))).reason is RejectReason.QUEUE_FULL


def test_waiting_ends_at_the_deadline() -> None:
    desk = Desk("p0", settings=DispatchSettings(queue_timeout_s=30.0))
    desk.tell(WorkerUp(spec=a_worker("d0", 100)))
    desk.tell(WorkerUp(spec=a_worker("d1", 20_000)))
    desk.tell(WorkerDraining(worker_id=D1))
    desk.tell(an_arrival(1))
    assert desk.dispatcher.next_deadline_at_s == 30.0
    desk.now = 29.9
    assert desk.tell(Tick()) == []
    desk.now = 30.0
    assert rejected(desk.tell(Tick())).reason is RejectReason.QUEUE_TIMEOUT
    assert desk.dispatcher.num_open_turns == 0


def test_deadline_holds_for_turns_held_behind_their_conversation() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(queue_timeout_s=30.0))
    desk.tell(an_arrival(1))
    assert desk.tell(an_arrival(2, tokens=1100)) == []
    desk.now = 31.0
    assert rejected(desk.tell(Tick())).turn_id == 2


def test_waiting_turn_is_served_when_a_worker_comes() -> None:
    desk = Desk("p0")
    assert desk.tell(an_arrival(1)) == []
    assert sent(desk.tell(WorkerUp(spec=a_worker("d0")))).decoder == D0


def test_prompt_longer_than_any_decoder_is_rejected_only_when_counted() -> None:
    desk = Desk("p0", "d0")
    assert rejected(desk.tell(an_arrival(1, "a", 10_001))).reason is RejectReason.TOO_LONG
    estimate = an_arrival(2, "b", 50_000)
    derived = replace(estimate, is_exact=False)
    assert sent(desk.tell(derived)).decoder == D0


def test_hopeless_derived_length_neither_waits_nor_makes_others_wait() -> None:
    desk = settled("p0", "d0", "d1")
    desk.now = 1000.0
    hopeless = replace(an_arrival(2, "b", 400_000), is_exact=False)
    assert sent(desk.tell(hopeless)).decoder == D1
    assert desk.dispatcher.conversation(ConversationId("a")).resident_tokens == 1050  # type: ignore[union-attr]
    assert sent(desk.tell(an_arrival(3, "c", 1000))).turn_id == 3


def test_prompt_stays_too_long_only_against_the_pools_that_are_known() -> None:
    desk = Desk("p0", "d0")
    desk.tell(WorkerUp(spec=a_worker("d1", 20_000)))
    desk.tell(WorkerLost(worker_id=D1))
    assert desk.tell(an_arrival(1, "a", 15_000)) == [], "it waits for the larger one"


def test_turn_held_behind_one_that_has_to_wait_again_goes_on_by_itself() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2, tokens=1100))
    desk.tell(WorkerLost(worker_id=P0))
    assert desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFILLER_FAILED)) == []
    commands = desk.tell(WorkerUp(spec=a_worker("p0")))
    assert sent(commands).turn_id == 1
    assert sent(desk.tell(FirstToken(turn_id=TurnId(1)))).turn_id == 2


def test_second_turn_waits_until_the_first_has_brought_the_kv() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    assert desk.tell(an_arrival(2, tokens=1100)) == []
    command = sent(desk.tell(FirstToken(turn_id=TurnId(1))))
    assert (command.turn_id, command.decoder, command.prefiller) == (2, D0, None)


def test_held_turn_opens_the_conversation_when_the_first_is_abandoned() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2, tokens=1100))
    command = sent(desk.tell(TurnAbandoned(turn_id=TurnId(1))))
    assert (command.turn_id, command.prefiller) == (2, P0)
