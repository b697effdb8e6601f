"""Event scripts and the commands that must follow."""

import pytest

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    AbortTurn,
    BlameWorker,
    ConversationEnded,
    FailureCause,
    FirstToken,
    ReleaseConversation,
    Tick,
    TurnAbandoned,
    TurnFailed,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import PlacementReason
from tests.builders import D0, D1, P0, P1, Desk, a_worker, an_arrival
from tests.dispatch.talk import finish, sent, settled


def test_first_turn_goes_through_a_prefiller_to_the_roomiest_decoder() -> None:
    desk = Desk("p0", "d0")
    desk.tell(WorkerUp(spec=a_worker("d1", 20_000)))
    command = sent(desk.tell(an_arrival(1)))
    assert (command.prefiller, command.decoder) == (P0, D1)
    assert command.reason is PlacementReason.FIRST_TURN
    assert command.limits is None


def test_second_turn_goes_to_the_pinned_decoder_alone() -> None:
    desk = settled("p0", "d0", "d1")
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (command.prefiller, command.decoder) == (None, D0)
    assert command.reason is PlacementReason.PINNED
    assert command.limits is not None
    assert command.limits.max_uncached == 2047
    assert command.limits.min_cached == 1000 - 128


def test_ledger_spreads_conversations_by_free_tokens() -> None:
    desk = Desk("p0", "d0", "d1")
    decoders = [sent(desk.tell(an_arrival(i, f"c{i}"))).decoder for i in range(4)]
    assert decoders == [D0, D1, D0, D1]


def test_prefillers_share_by_backlog_and_first_token_frees_it() -> None:
    desk = Desk("p0", "p1", "d0")
    assert sent(desk.tell(an_arrival(1, "a", 3000))).prefiller == P0
    assert sent(desk.tell(an_arrival(2, "b", 1000))).prefiller == P1
    assert sent(desk.tell(an_arrival(3, "c", 1000))).prefiller == P1
    desk.tell(FirstToken(turn_id=TurnId(1)))
    assert sent(desk.tell(an_arrival(4, "d", 1000))).prefiller == P0


def test_large_append_starts_a_new_phase_one_on_the_same_decoder() -> None:
    desk = settled("p0", "d0", "d1", max_local_append_tokens=500)
    command = sent(desk.tell(an_arrival(2, tokens=1550)))
    assert (command.prefiller, command.decoder) == (P0, D0)
    assert command.reason is PlacementReason.LARGE_APPEND
    assert num_kv_transfers(desk) == 1  # it has not arrived yet
    desk.tell(FirstToken(turn_id=TurnId(2)))
    assert num_kv_transfers(desk) == 2


def test_attempt_that_failed_before_its_first_token_moved_no_kv() -> None:
    desk = Desk("p0", "p1", "d0")
    desk.tell(an_arrival(1))
    desk.tell(TurnFailed(turn_id=TurnId(1), cause=FailureCause.PREFILLER_FAILED))
    finish(desk, 1)
    assert num_kv_transfers(desk) == 1


def num_kv_transfers(desk: Desk) -> int:
    view = desk.dispatcher.conversation(ConversationId("a"))
    assert view is not None
    return view.num_kv_transfers


def test_append_just_below_the_threshold_stays_local() -> None:
    desk = settled("p0", "d0", max_local_append_tokens=500)
    assert sent(desk.tell(an_arrival(2, tokens=1549))).prefiller is None


def test_large_append_moves_to_another_decoder_when_the_pinned_one_is_full() -> None:
    desk = settled("p0", "d0", "d1", max_local_append_tokens=500)
    assert sent(desk.tell(an_arrival(10, "b", 1000))).decoder == D1
    assert sent(desk.tell(an_arrival(11, "c", 8000))).decoder == D0
    commands = desk.tell(an_arrival(2, tokens=3000))
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0)
    assert sent(commands).decoder == D1


def test_missing_prefix_is_repaired_through_phase_one() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    command = sent(desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.PREFIX_MISSING)))
    assert (command.prefiller, command.decoder) == (P0, D0)
    assert command.reason is PlacementReason.PREFIX_MISSING
    assert command.attempt == 2
    finish(desk, 2, prompt=1100)
    assert sent(desk.tell(an_arrival(3, tokens=1200))).reason is PlacementReason.PINNED


def test_cause_survives_a_prefiller_that_fails_during_the_repair() -> None:
    desk = settled("p0", "d0")
    desk.tell(an_arrival(2, tokens=1100))
    desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.PREFIX_MISSING))
    command = sent(desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.PREFILLER_FAILED)))
    assert command.reason is PlacementReason.PREFIX_MISSING
    assert command.prefiller == P0


def test_side_request_leaves_the_conversation_where_it_is() -> None:
    desk = settled("p0", "d0", max_local_append_tokens=500)
    side = sent(desk.tell(an_arrival(2, tokens=120)))
    assert side.reason is PlacementReason.PINNED
    assert side.limits is not None
    assert side.limits.min_cached == 0
    finish(desk, 2, prompt=120)
    assert sent(desk.tell(an_arrival(3, tokens=1100))).reason is PlacementReason.PINNED


def test_conversation_leaving_a_decoder_that_is_up_is_released_there() -> None:
    desk = settled("p0", "d0", "d1")
    desk.tell(an_arrival(2, tokens=1100))
    commands = desk.tell(TurnFailed(turn_id=TurnId(2), cause=FailureCause.DECODER_FAILED))
    assert commands[:2] == [
        BlameWorker(worker_id=D0),
        ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0),
    ]


def test_ended_conversation_is_released_and_its_turns_answered() -> None:
    desk = settled("p0", "d0")
    desk.tell(an_arrival(2, tokens=1100))
    commands = desk.tell(ConversationEnded(conversation_id=ConversationId("a")))
    assert ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0) in commands
    assert AbortTurn(turn_id=TurnId(2)) in commands
    desk.tell(TurnAbandoned(turn_id=TurnId(2)))
    load = desk.dispatcher.worker_loads()[1]
    assert (load.resident_tokens, load.reserved_tokens) == (0, 0)


def test_idle_conversation_is_released_after_its_time_to_live() -> None:
    desk = settled("p0", "d0")
    assert desk.dispatcher.next_deadline_at_s == 3600.0
    desk.now = 3600.0
    assert desk.tell(Tick()) == [
        ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0)
    ]
    assert desk.dispatcher.num_conversations == 0


def test_long_idle_conversations_make_room_for_one_that_waits() -> None:
    desk = settled("p0", "d0")
    desk.now = 10.0
    assert desk.tell(an_arrival(5, "b", 9500)) == []
    assert desk.dispatcher.next_deadline_at_s == 15.0
    desk.now = 15.0
    commands = desk.tell(Tick())
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("a"), worker_id=D0)
    assert sent(commands).turn_id == 5
    desk.tell(TurnAbandoned(turn_id=TurnId(5)))
    assert sent(desk.tell(an_arrival(2, tokens=1100))).reason is PlacementReason.RECLAIMED


def test_late_reports_about_finished_turns_are_ignored() -> None:
    desk = settled("p0", "d0")
    assert finish(desk, 1) == []
    assert desk.tell(TurnAbandoned(turn_id=TurnId(99))) == []


def test_turn_id_in_use_is_an_error() -> None:
    desk = Desk("p0", "d0")
    desk.tell(an_arrival(1))
    with pytest.raises(ValueError, match="already open"):
        desk.dispatcher.handle(an_arrival(1), 0.0)


def test_stock_pd_sends_every_turn_through_both_and_keeps_no_pin() -> None:
    desk = settled("p0", "d0", "d1", policy="stock-pd")
    view = desk.dispatcher.conversation(ConversationId("a"))
    assert view is not None
    assert view.decoder is None
    command = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert command.prefiller == P0
    assert command.reason is PlacementReason.EVERY_TURN


def test_sticky_stock_pd_stays_on_its_decoder() -> None:
    desk = Desk("p0", "d0", "d1", policy="stock-pd", sticky=True)
    first = sent(desk.tell(an_arrival(1))).decoder
    finish(desk, 1)
    second = sent(desk.tell(an_arrival(2, tokens=1100)))
    assert (second.decoder, second.prefiller) == (first, P0)


def test_colocated_decoder_prefills_everything_itself() -> None:
    desk = Desk("d0", "d1", policy="colocated")
    command = sent(desk.tell(an_arrival(1)))
    assert command.prefiller is None
    assert command.limits is not None
    assert command.limits.min_cached == 0
    finish(desk, 1)
    assert sent(desk.tell(an_arrival(2, tokens=9000))).decoder == command.decoder


def test_colocated_prefers_mixed_workers_which_need_no_limits() -> None:
    command = sent(Desk("d0", "m0", policy="colocated").tell(an_arrival(1)))
    assert (command.decoder, command.limits) == (WorkerId("m0"), None)


def test_round_robin_rotates_per_turn() -> None:
    desk = Desk("p0", "d0", "d1", policy="round-robin")
    decoders = [sent(desk.tell(an_arrival(i, "a"))).decoder for i in range(3)]
    assert decoders == [D0, D1, D0]


def test_who_waits_for_a_worker_that_is_lost_goes_elsewhere_at_once() -> None:
    desk = Desk("d0", "m0", policy="colocated")
    assert sent(desk.tell(an_arrival(1, "a", 9000))).decoder == WorkerId("m0")
    assert not desk.tell(an_arrival(2, "b", 9000)), "waits for room on the mixed worker"
    commands = desk.tell(WorkerLost(worker_id=WorkerId("m0")))
    assert commands[0] == AbortTurn(turn_id=TurnId(1))
    assert sent(commands[1:]).decoder == D0
