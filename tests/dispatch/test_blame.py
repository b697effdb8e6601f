"""Which failures count against a worker, and which against nobody."""

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    BlameWorker,
    Command,
    ConversationEnded,
    FailureCause,
    FirstToken,
    RejectTurn,
    SendTurn,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerLost,
)
from tests.builders import D0, D1, P0, Desk, an_arrival

TURN = TurnId(1)
DECODER, PREFILLER = FailureCause.DECODER_FAILED, FailureCause.PREFILLER_FAILED
DONE = TurnDone(turn_id=TURN, prompt_tokens=1000, output_tokens=5, cached_tokens=0)


def blamed(commands: list[Command]) -> list[WorkerId]:
    return [each.worker_id for each in commands if isinstance(each, BlameWorker)]


def answered_with_an_error(desk: Desk, cause: FailureCause = DECODER) -> list[Command]:
    return desk.tell(TurnFailed(turn_id=TURN, cause=cause, by_answer=True))


def opened(*workers: str) -> Desk:
    desk = Desk(*workers)
    desk.tell(an_arrival(1))
    return desk


def test_broken_connection_counts_at_once() -> None:
    desk = opened("p0", "p1", "d0", "d1")
    assert blamed(desk.tell(TurnFailed(turn_id=TURN, cause=DECODER))) == [D0]
    assert blamed(desk.tell(TurnFailed(turn_id=TURN, cause=PREFILLER))) == [P0]
    assert blamed(desk.tell(FirstToken(turn_id=TURN))) == []


def test_stream_that_breaks_off_counts_at_once() -> None:
    desk = opened("p0", "d0", "d1")
    desk.tell(FirstToken(turn_id=TURN))
    assert blamed(desk.tell(TurnInterrupted(turn_id=TURN, output_tokens=3))) == [D0]


def test_error_counts_when_another_worker_answers_the_turn() -> None:
    desk = opened("p0", "d0", "d1")
    assert blamed(answered_with_an_error(desk)) == []
    assert blamed(desk.tell(FirstToken(turn_id=TURN))) == [D0]
    assert blamed(desk.tell(DONE)) == []


def test_error_of_a_prefiller_counts_when_the_answer_came_whole() -> None:
    desk = opened("p0", "p1", "d0")
    answered_with_an_error(desk, PREFILLER)
    assert blamed(desk.tell(DONE)) == [P0]


def test_request_that_nobody_can_answer_counts_against_nobody() -> None:
    desk = opened("p0", "d0", "d1", "d2")
    commands: list[Command] = []
    while not any(isinstance(each, RejectTurn) for each in commands):
        commands = answered_with_an_error(desk)
        assert blamed(commands) == []
        assert any(isinstance(each, RejectTurn | SendTurn) for each in commands)


def test_worker_that_answers_at_the_second_time_is_not_blamed() -> None:
    desk = opened("p0", "d0")
    answered_with_an_error(desk)
    assert blamed(desk.tell(FirstToken(turn_id=TURN))) == []


def test_decoder_whose_prefiller_died_is_not_blamed() -> None:
    desk = opened("p0", "p1", "d0", "d1")
    (again,) = [c for c in answered_with_an_error(desk) if isinstance(c, SendTurn)]
    assert again.decoder == D1
    desk.tell(WorkerLost(worker_id=P0))
    desk.tell(TurnFailed(turn_id=TURN, cause=PREFILLER))
    assert blamed(desk.tell(FirstToken(turn_id=TURN))) == []


def sent_to(commands: list[Command]) -> tuple[WorkerId | None, WorkerId]:
    (send,) = [each for each in commands if isinstance(each, SendTurn)]
    return send.prefiller, send.decoder


def test_next_attempt_leaves_out_both_workers_of_a_pair_that_answered_with_an_error() -> None:
    """Three decoders would else spend all attempts on a prefiller that nobody knows is dead."""
    desk = opened("p0", "p1", "d0", "d1", "d2")
    assert sent_to(answered_with_an_error(desk)) == (WorkerId("p1"), D1)


def test_partner_is_asked_again_where_there_is_no_other() -> None:
    desk = opened("p0", "d0", "d1")
    assert sent_to(answered_with_an_error(desk)) == (P0, D1)
    desk = opened("p0", "p1", "d0")
    assert sent_to(answered_with_an_error(desk, PREFILLER)) == (WorkerId("p1"), D0)


def test_broken_connection_casts_no_doubt_on_the_partner() -> None:
    desk = opened("p0", "p1", "d0", "d1")
    failed = TurnFailed(turn_id=TURN, cause=DECODER)
    assert sent_to(desk.tell(failed)) == (P0, D1)


def test_aborted_turns_count_against_nobody() -> None:
    desk = opened("p0", "d0", "d1")
    desk.tell(WorkerLost(worker_id=D0))
    assert blamed(desk.tell(TurnFailed(turn_id=TURN, cause=DECODER))) == []
    desk.tell(ConversationEnded(conversation_id=ConversationId("a")))
    assert blamed(desk.tell(TurnFailed(turn_id=TURN, cause=DECODER))) == []


def test_failure_of_nobody_s_is_nobody_s() -> None:
    desk = opened("p0", "d0", "d1")
    missing = TurnFailed(turn_id=TURN, cause=FailureCause.PREFIX_MISSING, by_answer=True)
    assert blamed(desk.tell(missing)) == []
    assert blamed(desk.tell(FirstToken(turn_id=TURN))) == []
