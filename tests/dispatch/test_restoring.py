"""Conversations known from elsewhere, conversations taken by others, and others' load."""

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    ConversationRestored,
    ConversationTaken,
    DispatchSettings,
    FirstToken,
    PeersReported,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnDone,
    WorkerLoad,
    WorkerLost,
)
from conserve_sglang.policy.api import PlacementReason
from tests.builders import D0, D1, P0, P1, Desk, an_arrival

A = ConversationId("a")


def restored(
    name: str = "a", decoder: WorkerId | None = D1, idle_s: float = 10.0, resident: int = 1050
) -> ConversationRestored:
    return ConversationRestored(
        conversation_id=ConversationId(name),
        decoder=decoder,
        resident_tokens=resident if decoder else 0,
        prompt_tokens=1000,
        num_turns=3,
        num_kv_transfers=1,
        idle_s=idle_s,
    )


def load(desk: Desk, worker: WorkerId) -> WorkerLoad:
    return next(each for each in desk.dispatcher.worker_loads() if each.worker_id == worker)


def sends(desk: Desk, turn: int = 1, name: str = "a", tokens: int = 1100) -> SendTurn:
    (command,) = desk.tell(an_arrival(turn, name, tokens))
    assert isinstance(command, SendTurn)
    return command


def test_a_restored_conversation_goes_on_where_it_was() -> None:
    desk = Desk("p0", "d0", "d1")
    assert desk.tell(restored()) == []
    assert (load(desk, D1).resident_tokens, load(desk, D1).num_conversations) == (1050, 1)
    command = sends(desk)
    assert (command.prefiller, command.decoder, command.turn_index) == (None, D1, 4)
    assert command.limits is not None
    assert command.limits.min_cached == 1000 - 128


def test_a_conversation_whose_decoder_is_gone_is_restored_without_a_pin() -> None:
    for decoder in (None, D1, WorkerId("d9")):
        desk = Desk("p0", "d0", "d1")
        desk.tell(WorkerLost(worker_id=D1))
        desk.tell(restored(decoder=decoder))
        assert desk.dispatcher.holds(A)
        command = sends(desk)
        assert (command.prefiller, command.decoder) == (P0, D0)
        assert command.reason is PlacementReason.DECODER_LOST
        assert command.turn_index == 4


def test_restored_conversations_end_by_their_true_age_in_whatever_order_they_came() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(conversation_ttl_s=100.0))
    desk.now = 1000.0
    for name, idle_s in (("young", 10.0), ("old", 90.0), ("middle", 50.0)):
        desk.tell(restored(name, D0, idle_s))
    desk.tell(restored("lapsed", None, 70.0))
    ends = []
    for _ in range(4):
        due = desk.dispatcher.next_deadline_at_s
        assert due is not None
        desk.now = due
        desk.tell(Tick())
        ends.append((due, desk.dispatcher.num_conversations))
    assert ends == [(1010.0, 3), (1030.0, 2), (1050.0, 1), (1090.0, 0)]
    assert load(desk, D0).resident_tokens == 0


def test_a_restored_conversation_that_woke_rests_as_the_youngest() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(conversation_ttl_s=100.0))
    desk.now = 1000.0
    desk.tell(restored("b", D0, 10.0))
    desk.tell(restored("a", D0, 90.0))
    sends(desk)
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=1100, output_tokens=1, cached_tokens=0))
    desk.tell(Tick())
    assert desk.dispatcher.next_deadline_at_s == 990.0 + 100.0


def test_an_opener_is_placed_again_when_its_conversation_turns_out_to_be_known() -> None:
    desk = Desk("p0", "p1", "d0", "d1")
    first = sends(desk)
    assert (first.decoder, first.prefiller) == (D0, P0)
    assert desk.tell(an_arrival(2, tokens=1200)) == []  # held behind it
    again, held = desk.tell(restored())
    assert isinstance(again, SendTurn)
    assert isinstance(held, SendTurn)
    assert (again.turn_id, again.decoder, again.prefiller, again.attempt) == (1, D1, None, 1)
    assert (held.turn_id, held.decoder, held.prefiller) == (2, D1, None)
    assert load(desk, D0).reserved_tokens == load(desk, P0).backlog_tokens == 0
    view = desk.dispatcher.conversation(A)
    assert view is not None
    assert (view.num_turns, view.num_kv_transfers) == (5, 1)


def test_no_worker_is_told_to_let_go_of_what_another_replica_says_it_has() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(restored(decoder=D0))
    assert desk.tell(restored(decoder=D1, resident=2000)) == []
    assert (load(desk, D0).resident_tokens, load(desk, D1).resident_tokens) == (0, 2000)


def test_a_taken_conversation_is_neither_counted_nor_released() -> None:
    desk = Desk("p0", "d0")
    desk.tell(restored(decoder=D0))
    assert desk.tell(ConversationTaken(conversation_id=A)) == []
    assert not desk.dispatcher.holds(A)
    assert (load(desk, D0).resident_tokens, load(desk, D0).num_conversations) == (0, 0)
    assert desk.tell(ConversationTaken(conversation_id=A)) == []


def test_open_turns_of_a_taken_conversation_end_where_they_began() -> None:
    desk = Desk("p0", "d0")
    desk.tell(restored(decoder=D0))
    sends(desk)
    assert desk.tell(ConversationTaken(conversation_id=A)) == []
    assert load(desk, D0).reserved_tokens > 0
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=1100, output_tokens=9, cached_tokens=0))
    assert (load(desk, D0).resident_tokens, load(desk, D0).reserved_tokens) == (0, 0)


def test_a_conversation_that_is_being_opened_is_not_given_up() -> None:
    desk = Desk("p0", "d0")
    sends(desk)
    desk.tell(ConversationTaken(conversation_id=A))
    desk.tell(FirstToken(turn_id=TurnId(1)))
    desk.tell(TurnDone(turn_id=TurnId(1), prompt_tokens=1100, output_tokens=9, cached_tokens=0))
    assert load(desk, D0).resident_tokens == 1109


def test_what_other_replicas_hold_is_not_free() -> None:
    desk = Desk("p0", "p1", "d0", "d1")
    desk.tell(PeersReported(kv_tokens={D0: 5000}, backlog_tokens={P0: 10}))
    command = sends(desk)
    assert (command.decoder, command.prefiller) == (D1, P1)
    assert (load(desk, D0).free_tokens, load(desk, D0).foreign_tokens) == (5000, 5000)


def test_a_turn_waits_for_room_that_another_replica_has_and_goes_when_it_is_given_back() -> None:
    desk = Desk("p0", "d0")
    desk.tell(PeersReported(kv_tokens={D0: 9500}, backlog_tokens={}))
    assert desk.tell(an_arrival(1)) == []
    (command,) = desk.tell(PeersReported(kv_tokens={}, backlog_tokens={}))
    assert isinstance(command, SendTurn)


def test_a_lost_worker_takes_restored_pins_with_it_without_a_release() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(restored())
    told = desk.tell(WorkerLost(worker_id=D1))
    assert not [each for each in told if isinstance(each, ReleaseConversation)]
    assert sends(desk).reason is PlacementReason.DECODER_LOST
