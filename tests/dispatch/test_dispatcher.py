"""Event scripts and the commands that must follow."""

from dataclasses import replace

import pytest

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    AbortTurn,
    BlameWorker,
    Command,
    ConversationEnded,
    DispatchSettings,
    FailureCause,
    FirstToken,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
    Tick,
    TurnAbandoned,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerLost,
    WorkerUp,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from tests.builders import D0, D1, P0, P1, Desk, a_worker, an_arrival


def sent(commands: list[Command]) -> SendTurn:
    (command,) = [c for c in commands if isinstance(c, SendTurn)]
    return command


def rejected(commands: list[Command]) -> RejectTurn:
    (command,) = [c for c in commands if not isinstance(c, BlameWorker)]
    assert isinstance(command, RejectTurn)
    return command


def finish(desk: Desk, turn: int, prompt: int = 1000, output: int = 50) -> list[Command]:
    return desk.tell(FirstToken(turn_id=TurnId(turn))) + desk.tell(
        TurnDone(turn_id=TurnId(turn), prompt_tokens=prompt, output_tokens=output, cached_tokens=0)
    )


def settled(*workers: str, policy: str = "conserve", **params: int) -> Desk:
    """One conversation "a" of 1,050 resident tokens, turn 1 answered."""
    desk = Desk(*workers, policy=policy, capacity=10_000, settings=None, **params)
    desk.tell(an_arrival(1))
    finish(desk, 1)
    return desk


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
    assert desk.dispatcher.conversation(ConversationId("a")).num_kv_transfers == 2  # type: ignore[union-attr]


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


def test_first_token_from_a_decoder_lost_meanwhile_does_not_hide_its_loss() -> None:
    desk = Desk("p0", "d0", "d1")
    desk.tell(an_arrival(1))
    desk.tell(an_arrival(2))
    desk.tell(WorkerLost(worker_id=D0))
    command = sent(desk.tell(FirstToken(turn_id=TurnId(1))))
    assert (command.turn_id, command.decoder) == (TurnId(2), D1)
    assert command.reason is PlacementReason.DECODER_LOST


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
    desk = settled("p0", "d0", "d1")
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
