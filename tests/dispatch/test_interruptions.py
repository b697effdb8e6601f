"""Workers that are lost, turns that fail or are cut in the middle, and where they go on."""

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.dispatch import (
    AbortTurn,
    BlameWorker,
    ConversationEnded,
    DispatchSettings,
    FailureCause,
    FirstToken,
    KvMoved,
    RejectTurn,
    ReleaseConversation,
    Tick,
    TurnAbandoned,
    TurnFailed,
    TurnInterrupted,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from tests.builders import D0, D1, D2, P0, Desk, a_worker, an_arrival
from tests.dispatch.talk import finish, rejected, sent, settled

PAUSE_S = DispatchSettings().retry_pause_s


def test_conversation_of_a_lost_decoder_is_prefilled_again_elsewhere() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(WorkerLost(worker_id=D0))
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (command.prefiller, command.decoder) == (P0, D1)
    assert command.reason is PlacementReason.DECODER_LOST


def test_worker_that_comes_back_is_empty_and_old_pins_stay_void() -> None:
    desk = settled("p0", "d0")
    desk.tell(WorkerUp(spec=a_worker("d0")))
    assert desk.dispatcher.worker_loads()[1].resident_tokens == 0
    assert sent(desk.tell(an_arrival(2, tokens=1100))).reason is PlacementReason.DECODER_LOST


def test_turns_on_a_lost_worker_are_aborted_and_tried_elsewhere() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    assert desk.tell(WorkerLost(worker_id=D0)) == [AbortTurn(turn_id=TurnId(1))]
    command = sent(desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.DECODER_FAILED)))
    assert command.decoder == D1


def test_retries_are_bounded() -> None:
    desk = Desk("p0", "d0", settings=DispatchSettings(max_attempts=2))
    desk.tell(an_arrival(1))
    desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFILLER_FAILED))
    command = rejected(
        desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFILLER_FAILED))
    )
    assert command.reason is RejectReason.RETRIES_SPENT
    assert desk.dispatcher.num_conversations == 0


def test_turn_pauses_before_it_goes_back_to_a_worker_that_failed_it_twice() -> None:
    """A decoder that dies may break all attempts before anyone knows."""
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    assert sent(desk.tell(decoder_failed(1))).decoder == D0
    assert desk.tell(decoder_failed(1)) == [BlameWorker(worker_id=D0)]
    assert desk.dispatcher.queue_depths == {"phase_one": 0, "tail": 0, "retry": 1}
    desk.tell(WorkerLost(worker_id=D0))
    desk.now += PAUSE_S
    assert desk.dispatcher.next_deadline_at_s == desk.now
    assert desk.tell(Tick()) == []
    assert desk.dispatcher.queue_depths == {"phase_one": 1, "tail": 0, "retry": 0}
    assert sent(desk.tell(WorkerUp(spec=a_worker("d1")))).decoder == D1


def test_turn_goes_back_behind_its_pause_and_at_once_to_a_worker_it_has_not_met() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    desk.tell(decoder_failed(1))
    desk.tell(decoder_failed(1))
    desk.now += PAUSE_S
    assert sent(desk.tell(Tick())).decoder == D0
    assert rejected(desk.tell(decoder_failed(1))).reason is RejectReason.RETRIES_SPENT
    other = Desk("p0", "d0", "d1", "d2")
    other.tell(an_arrival(1))
    assert [sent(other.tell(decoder_failed(1))).decoder for _ in range(2)] == [D1, D2]


def test_turn_that_pauses_may_be_given_up_and_ends_with_its_conversation() -> None:
    for event in (
        TurnAbandoned(turn_id=TurnId(1)),
        ConversationEnded(conversation_id=ConversationId("a")),
    ):
        desk = Desk("p0", "d0")
        desk.tell(an_arrival(1))
        desk.tell(decoder_failed(1))
        desk.tell(decoder_failed(1))
        desk.tell(event)
        assert (desk.dispatcher.num_open_turns, desk.dispatcher.num_queued) == (0, 0)
        desk.now += PAUSE_S
        assert desk.tell(Tick()) == []


def test_turn_without_the_time_for_a_pause_is_tried_at_once() -> None:
    """Behind its pause, or at once where its deadline has passed, it would only be rejected."""
    for at_workers_s, most_s in ((0.0, PAUSE_S), (61.0, 60.0)):
        desk = Desk("p0", "d0", settings=DispatchSettings(queue_timeout_s=most_s))
        desk.tell(an_arrival(1))
        desk.now += at_workers_s
        for attempt in (2, 3):
            assert sent(desk.tell(decoder_failed(1))).attempt == attempt
        assert desk.tell(Tick()) == []
        assert rejected(desk.tell(decoder_failed(1))).reason is RejectReason.RETRIES_SPENT
        assert desk.dispatcher.num_open_turns == 0


def test_first_token_from_a_decoder_lost_meanwhile_does_not_hide_its_loss() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2))
    desk.tell(WorkerLost(worker_id=D0))
    command = sent(desk.tell(FirstToken(turn_id=TurnId(1))))
    assert (command.turn_id, command.decoder) == (TurnId(2), D1)
    assert command.reason is PlacementReason.DECODER_LOST


def decoder_failed(turn: int) -> TurnFailed:
    return TurnFailed(turn_id=TurnId(turn), cause=FailureCause.DECODER_FAILED)


def test_kv_of_a_turn_that_fails_after_it_was_moved_is_booked_where_it_is() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(KvMoved(TurnId(1)))
    assert [load.backlog_tokens for load in desk.dispatcher.worker_loads()] == [0, 0, 0]
    again = sent(desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFIX_MISSING)))
    assert (again.decoder, again.prefiller) == (D0, P0)
    assert again.reason is PlacementReason.PREFIX_MISSING
    desk.tell(KvMoved(TurnId(1)))
    commands = desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.DECODER_FAILED))
    left = [each for each in commands if isinstance(each, ReleaseConversation)]
    assert [each.worker_id for each in left] == [D0]
    assert sent(commands).decoder == D1
    finish(desk, 1)
    view = desk.dispatcher.conversation(an_arrival(1).conversation_id)
    assert view is not None
    assert view.num_kv_transfers == 3


def test_turns_that_waited_for_kv_go_on_when_it_is_there() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2))
    command = sent(desk.tell(KvMoved(TurnId(1))))
    assert (command.turn_id, command.decoder, command.prefiller) == (TurnId(2), D0, None)


def interrupted(turn: int, tokens: int) -> TurnInterrupted:
    return TurnInterrupted(turn_id=TurnId(turn), output_tokens=tokens)


def test_interrupted_turn_goes_on_as_a_phase_1_on_another_decoder() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    desk.tell(FirstToken(turn_id=TurnId(2)))
    desk.tell(WorkerLost(worker_id=D0))
    command = sent(desk.tell(interrupted(2, 300)))
    assert (command.prefiller, command.decoder) == (P0, D1)
    assert command.reason is PlacementReason.DECODER_LOST
    assert desk.dispatcher.worker_loads()[2].reserved_tokens == 1100 + 300 + 100
    finish(desk, 2, prompt=1100, output=400)
    assert desk.dispatcher.worker_loads()[2].resident_tokens == 1500
    assert sent(desk.tell(an_arrival(3, tokens=1600))).decoder == D1


def test_interrupted_turn_waits_for_room_with_a_deadline_of_its_own() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    desk.tell(FirstToken(turn_id=TurnId(2)))
    desk.tell(WorkerLost(worker_id=D0))
    desk.tell(WorkerLost(worker_id=D1))
    desk.now = 59.0
    assert desk.tell(interrupted(2, 300)) == []
    desk.now = 61.0
    assert desk.tell(Tick()) == []
    assert sent(desk.tell(WorkerUp(spec=a_worker("d1")))).turn_id == TurnId(2)


def test_turn_is_interrupted_only_so_often() -> None:
    desk = settled("p0", "d0", "d1", "d2")
    desk.tell(an_arrival(2, tokens=1100))
    for count in (1, 2):
        desk.tell(FirstToken(turn_id=TurnId(2)))
        assert sent(desk.tell(interrupted(2, 10 * count))).attempt == 1
    desk.tell(FirstToken(turn_id=TurnId(2)))
    commands = desk.tell(interrupted(2, 30))
    assert RejectTurn(turn_id=TurnId(2), reason=RejectReason.RETRIES_SPENT) in commands


def test_interrupted_turn_leaves_a_pin_that_is_not_its_own() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    desk.tell(FirstToken(turn_id=TurnId(2)))
    desk.tell(WorkerLost(worker_id=D0))
    assert sent(desk.tell(an_arrival(3, tokens=1200))).decoder == D1
    finish(desk, 3, prompt=1200)
    commands = desk.tell(interrupted(2, 300))
    assert not [c for c in commands if isinstance(c, ReleaseConversation)]
    assert (sent(commands).prefiller, sent(commands).decoder) == (P0, D1)
