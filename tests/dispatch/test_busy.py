"""Turns whose worker says that it is busy: tried elsewhere, or told so with nothing changed."""

import pytest

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    BlameWorker,
    Command,
    ConversationEnded,
    ConversationRestored,
    DispatchSettings,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    TurnAbandoned,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from tests.builders import D0, D1, P0, P1, Desk, a_worker, an_arrival
from tests.dispatch.talk import finish, sent, settled

DECODER, PREFILLER = FailureCause.DECODER_BUSY, FailureCause.PREFILLER_BUSY
BUSY = RejectReason.WORKERS_BUSY
A = ConversationId("a")


def failed(turn: int, cause: FailureCause = DECODER) -> TurnFailed:
    return TurnFailed(turn_id=TurnId(turn), cause=cause, by_answer=True)


def sends(commands: list[Command]) -> list[SendTurn]:
    return [each for each in commands if isinstance(each, SendTurn)]


def why_rejected(commands: list[Command]) -> RejectReason:
    (command,) = commands
    assert isinstance(command, RejectTurn)
    return command.reason


def on_its_way(*workers: str, policy: str = "conserve") -> Desk:
    """A conversation of 1050 tokens, pinned to the first decoder, and its second turn there."""
    desk = settled(*workers, policy=policy)
    sent(desk.tell(an_arrival(2, tokens=1100)))
    return desk


def books(desk: Desk) -> dict[WorkerId, tuple[int, int, int, int]]:
    return {
        load.worker_id: (
            load.resident_tokens, load.reserved_tokens, load.backlog_tokens, load.num_conversations
        )
        for load in desk.dispatcher.worker_loads()
    }  # fmt: skip


def pin_of_a(desk: Desk) -> WorkerId | None:
    view = desk.dispatcher.conversation(A)
    assert view is not None
    return view.decoder


def test_new_conversation_goes_to_another_decoder_and_nobody_is_blamed() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    commands = desk.tell(failed(1))
    again = sent(commands)
    assert (again.prefiller, again.decoder, again.attempt) == (P0, D1, 2)
    assert again.reason is PlacementReason.FIRST_TURN
    commands += finish(desk, 1)
    assert commands == [again], "nobody is blamed, then or when it is answered"
    assert pin_of_a(desk) == D1


def test_new_conversation_goes_to_another_prefiller() -> None:
    desk = Desk("p0", "p1", "d0")
    desk.tell(an_arrival(1))
    again = sent(desk.tell(failed(1, PREFILLER)))
    assert (again.prefiller, again.decoder) == (P1, D0)


@pytest.mark.parametrize("cause", [DECODER, PREFILLER])
def test_where_nobody_else_is_the_client_is_told_and_may_come_again(cause: FailureCause) -> None:
    desk = Desk("p0", "d0")
    empty = books(desk)
    desk.tell(an_arrival(1))
    assert why_rejected(desk.tell(failed(1, cause))) is BUSY
    assert books(desk) == empty
    assert sent(desk.tell(an_arrival(2))).decoder == D0


def test_pinned_conversation_moves_for_its_own_cause() -> None:
    desk = on_its_way("p0", "d0", "d1")
    again = sent(desk.tell(failed(2)))
    assert (again.prefiller, again.decoder) == (P0, D1)
    assert again.reason is PlacementReason.DECODER_BUSY
    assert again.limits is None
    assert again.resident_tokens == 0


def test_pin_moves_when_the_kv_has_moved_and_not_before() -> None:
    desk = on_its_way("p0", "d0", "d1")
    assert not any(isinstance(c, ReleaseConversation) for c in desk.tell(failed(2)))
    assert pin_of_a(desk) == D0
    assert desk.tell(FirstToken(turn_id=TurnId(2))) == [
        ReleaseConversation(conversation_id=A, worker_id=D0)
    ]
    assert pin_of_a(desk) == D1
    finish(desk, 2, 1100)
    assert books(desk)[D0] == (0, 0, 0, 0)
    assert books(desk)[D1] == (1150, 0, 0, 1)
    third = sent(desk.tell(an_arrival(3, tokens=1200)))
    assert (third.decoder, third.reason) == (D1, PlacementReason.PINNED)


def test_pin_moves_with_an_answer_that_is_whole_at_once() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    done = TurnDone(turn_id=TurnId(2), prompt_tokens=1100, output_tokens=50, cached_tokens=0)
    assert desk.tell(done) == [ReleaseConversation(conversation_id=A, worker_id=D0)]
    assert books(desk)[D1] == (1150, 0, 0, 1)


def test_where_the_next_is_busy_too_all_is_as_it_was() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(TurnAbandoned(turn_id=TurnId(2)))
    before = books(desk)
    desk.tell(an_arrival(3, tokens=1100))
    desk.tell(failed(3))
    assert why_rejected(desk.tell(failed(3))) is BUSY
    assert books(desk) == before
    retried = sent(desk.tell(an_arrival(4, tokens=1100)))
    assert (retried.decoder, retried.reason) == (D0, PlacementReason.PINNED)
    assert finish(desk, 4, 1100) == []


def test_conversation_does_not_move_where_it_does_not_fit() -> None:
    desk = on_its_way("p0", "d0", "d1")
    sent(desk.tell(an_arrival(3, "b", tokens=9000)))
    before = books(desk)[D1]
    assert why_rejected(desk.tell(failed(2))) is BUSY
    assert (books(desk)[D1], pin_of_a(desk)) == (before, D0)


def test_turn_takes_no_place_that_another_waits_for() -> None:
    desk = settled("p0", "d0", "d1")
    assert sent(desk.tell(an_arrival(3, "b", tokens=5000))).decoder == D1
    desk.tell(FirstToken(turn_id=TurnId(3)))
    assert desk.tell(an_arrival(4, "c", tokens=9500)) == [], "waits for KV room"
    assert sent(desk.tell(an_arrival(2, tokens=1100))).decoder == D0
    assert why_rejected(desk.tell(failed(2))) is BUSY
    assert pin_of_a(desk) == D0


def test_turn_waits_for_no_prefiller() -> None:
    settings = DispatchSettings(reserve_output_tokens=100, max_prefill_backlog_tokens=1000)
    desk = Desk("p0", "d0", "d1", settings=settings)
    desk.tell(an_arrival(1))
    finish(desk, 1)
    desk.tell(an_arrival(2, tokens=1100))
    sent(desk.tell(an_arrival(3, "b")))
    assert why_rejected(desk.tell(failed(2))) is BUSY
    assert desk.dispatcher.num_queued == 0


def test_turn_of_a_conversation_whose_kv_is_on_its_way_is_not_moved() -> None:
    desk = on_its_way("p0", "d0", "d1")
    opening = sent(desk.tell(an_arrival(3, tokens=4000)))
    assert (opening.prefiller, opening.decoder) == (P0, D0)
    assert why_rejected(desk.tell(failed(2))) is BUSY
    finish(desk, 3, 4000)
    assert pin_of_a(desk) == D0


def test_later_turns_of_the_conversation_wait_for_the_move_and_follow_it() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    assert desk.tell(an_arrival(3, tokens=1100)) == []
    released, third = desk.tell(FirstToken(turn_id=TurnId(2)))
    assert isinstance(released, ReleaseConversation)
    assert isinstance(third, SendTurn)
    assert (third.turn_id, third.decoder) == (TurnId(3), D1)


def test_later_turns_go_where_the_kv_still_is_when_the_move_fails() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    desk.tell(an_arrival(3, tokens=1100))
    rejected, third = desk.tell(failed(2))
    assert isinstance(rejected, RejectTurn)
    assert isinstance(third, SendTurn)
    assert (third.turn_id, third.decoder, third.prefiller) == (TurnId(3), D0, None)


def test_move_whose_decoder_breaks_leaves_the_pin_alone() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    commands = desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.DECODER_FAILED))
    assert [c for c in commands if isinstance(c, BlameWorker)] == [BlameWorker(worker_id=D1)]
    (again,) = [c for c in commands if isinstance(c, SendTurn)]
    assert (again.decoder, again.reason, again.attempt) == (D0, PlacementReason.PINNED, 3)
    assert why_rejected(desk.tell(failed(2))) is BUSY
    assert pin_of_a(desk) == D0


def test_move_whose_prefiller_breaks_is_tried_with_another() -> None:
    desk = on_its_way("p0", "p1", "d0", "d1")
    desk.tell(failed(2))
    commands = desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.PREFILLER_FAILED))
    (again,) = [c for c in commands if isinstance(c, SendTurn)]
    assert (again.prefiller, again.decoder) == (P1, D1)
    assert again.reason is PlacementReason.DECODER_BUSY


def test_decoder_lost_during_the_move_is_the_old_one_s_or_the_new_one_s() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    desk.tell(WorkerLost(worker_id=D0))
    assert finish(desk, 2, 1100) == []
    assert pin_of_a(desk) == D1
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    desk.tell(WorkerLost(worker_id=D1))
    assert desk.tell(FirstToken(turn_id=TurnId(2))) == []
    assert pin_of_a(desk) == D0


def test_conversation_that_ends_during_the_move_is_not_pinned_again() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    desk.tell(ConversationEnded(conversation_id=A))
    finish(desk, 2, 1100)
    assert books(desk)[D0] == books(desk)[D1] == (0, 0, 0, 0)


def test_ended_conversation_is_tried_nowhere() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(ConversationEnded(conversation_id=A))
    assert why_rejected(desk.tell(failed(2))) is RejectReason.CONVERSATION_ENDED


def test_move_is_placed_again_when_another_replica_knows_better() -> None:
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    restored = ConversationRestored(
        conversation_id=A, decoder=D1, resident_tokens=1050, prompt_tokens=1000, num_turns=1,
        num_kv_transfers=1, idle_s=0.0,
    )  # fmt: skip
    again = sent(desk.tell(restored))
    assert (again.decoder, again.reason) == (D1, PlacementReason.PINNED)


def test_attempts_are_bounded_together_with_all_others() -> None:
    desk = Desk("p0", "d0", "d1", "d2", "d3")
    desk.tell(an_arrival(1))
    assert sent(desk.tell(failed(1))).attempt == 2
    assert sent(desk.tell(failed(1))).attempt == 3
    assert why_rejected(desk.tell(failed(1))) is BUSY


def test_turns_that_failed_otherwise_at_last_are_not_called_busy() -> None:
    desk = Desk("p0", "d0", "d1", "d2")
    desk.tell(an_arrival(1))
    desk.tell(failed(1))
    desk.tell(failed(1))
    assert why_rejected(desk.tell(failed(1, FailureCause.DECODER_FAILED))) is (
        RejectReason.RETRIES_SPENT
    )


def test_all_busy_costs_one_attempt_a_worker_and_then_none_until_time_has_passed() -> None:
    decoders = [f"d{n}" for n in range(6)]
    desk = Desk("p0", *decoders)
    attempts = []
    for turn in range(50):
        commands = desk.tell(an_arrival(turn, f"c{turn}"))
        attempts.append(0)
        while sends(commands):
            attempts[-1] += 1
            commands = desk.tell(failed(turn))
        assert why_rejected(commands) is BUSY
    assert sum(attempts) <= 50 + len(decoders)
    assert attempts[10:] == [1] * 40
    desk.now += 1.0
    sent(desk.tell(an_arrival(50, "x")))
    assert sent(desk.tell(failed(50))).attempt == 2


def test_first_attempts_go_where_they_went() -> None:
    """Else one tenant's requests that look busy to every worker would move all others'."""
    desk = on_its_way("p0", "d0", "d1")
    desk.tell(failed(2))
    desk.tell(failed(2))
    assert sent(desk.tell(an_arrival(3, tokens=1100))).decoder == D0
    assert sent(desk.tell(an_arrival(4, "b"))).decoder == D1


def test_worker_that_comes_back_is_not_busy() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(failed(1))
    desk.tell(TurnAbandoned(turn_id=TurnId(1)))
    desk.tell(WorkerLost(worker_id=D0))
    desk.tell(WorkerUp(spec=a_worker("d0")))
    desk.tell(an_arrival(2, "b", tokens=500))
    desk.tell(an_arrival(3, "c"))
    assert sent(desk.tell(failed(3))).decoder == D0


def test_conversation_on_mixed_workers_moves_too() -> None:
    desk = on_its_way("m0", "m1", policy="colocated")
    again = sent(desk.tell(failed(2)))
    assert (again.decoder, again.prefiller) == (WorkerId("m1"), None)
    finish(desk, 2, 1100)
    assert books(desk)[WorkerId("m0")] == (0, 0, 0, 0)
    assert books(desk)[WorkerId("m1")] == (1150, 0, 0, 1)


def test_every_turn_of_a_policy_without_pins_is_tried_elsewhere() -> None:
    desk = Desk("p0", "d0", "d1", policy="stock-pd")
    first = sent(desk.tell(an_arrival(1))).decoder
    assert sent(desk.tell(failed(1))).decoder != first


def test_interrupted_answer_goes_past_a_busy_decoder() -> None:
    desk = Desk("p0", "d0", "d1", "d2")
    desk.tell(an_arrival(1))
    desk.tell(FirstToken(turn_id=TurnId(1)))
    commands = desk.tell(TurnInterrupted(turn_id=TurnId(1), output_tokens=7))
    (on,) = [c for c in commands if isinstance(c, SendTurn)]
    past = sent(desk.tell(failed(1)))
    assert len({D0, on.decoder, past.decoder}) == 3
    assert past.reason is PlacementReason.DECODER_LOST
