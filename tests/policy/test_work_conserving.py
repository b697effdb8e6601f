"""Roles that bend: when a phase 1 is spilled, and when a conversation stays on its prefiller."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.policy.api import (
    Defer,
    DeferReason,
    Pace,
    PhaseOneCause,
    Placement,
    PlacementReason,
    Reject,
)
from tests.builders import D0, D1, P0, a_turn_view
from tests.policy.stub import StubCluster, ask

FIRST = a_turn_view(input_tokens=10_000)
RATES = {P0: 50e-6, D0: 60e-6, D1: 60e-6}
IDLE = StubCluster(
    free={D0: 50_000, D1: 90_000, P0: 90_000}, prefillers=(P0,), capacity=100_000, rates=RATES
)
SPILLED_TO_D0 = Placement(D0, None, PlacementReason.SPILLED, True)


def test_an_idle_prefiller_gets_the_prompt() -> None:
    assert ask("work-conserving", FIRST, IDLE) == Placement(
        D1, P0, PlacementReason.FIRST_TURN, True
    )


def test_an_idle_decoder_takes_what_would_wait() -> None:
    behind = replace(IDLE, pending={P0: 4_000}, running={D1: 1})
    assert ask("work-conserving", FIRST, behind) == SPILLED_TO_D0


def test_a_spill_must_save_more_than_it_stalls() -> None:
    # The wait saved is 30,000 x 50 us = 1.5 s; prefilling here stalls each answer for 0.6 s, and
    # that comes late twice.
    behind = replace(IDLE, busy=(P0,), pending={P0: 30_000}, running={D0: 1, D1: 2})
    assert ask("work-conserving", FIRST, behind) == SPILLED_TO_D0
    fuller = replace(behind, running={D0: 2, D1: 2})
    assert ask("work-conserving", FIRST, fuller) == Defer(DeferReason.PREFILL_BACKLOG)
    # Each turn that waits behind is spared one prefill of 0.5 s.
    helped = replace(fuller, line=(2, 18_000))
    assert ask("work-conserving", FIRST, helped) == SPILLED_TO_D0
    # But not if they wait for KV room: there is some for one turn alone.
    tight = replace(helped, free={D0: 10_000, D1: 9_000, P0: 0})
    assert isinstance(ask("work-conserving", FIRST, tight), Defer)
    assert ask("work-conserving", FIRST, fuller, stall_weight=1) == SPILLED_TO_D0
    assert isinstance(ask("work-conserving", FIRST, behind, stall_weight=3), Defer)


def test_prefills_that_a_decoder_has_before_it_count() -> None:
    behind = replace(IDLE, pending={P0: 26_000, D0: 22_000}, running={D1: 1})
    answer = ask("work-conserving", FIRST, behind)
    assert answer == Placement(D1, None, PlacementReason.SPILLED, True)


def test_nothing_is_spilled_before_a_prefill_was_seen() -> None:
    unseen = replace(IDLE, rates={}, busy=(P0,), pending={P0: 90_000})
    assert ask("work-conserving", FIRST, unseen) == Defer(DeferReason.PREFILL_BACKLOG)


def test_a_decoder_never_seen_to_prefill_is_taken_to_be_like_the_prefiller() -> None:
    behind = replace(IDLE, rates={P0: 50e-6}, pending={P0: 22_000}, running={D0: 1, D1: 9})
    assert ask("work-conserving", FIRST, behind) == SPILLED_TO_D0


def test_a_large_append_is_spilled_to_the_pin_alone() -> None:
    turn = a_turn_view(input_tokens=30_000, pinned=D1, resident=20_000)
    behind = replace(IDLE, pending={P0: 26_000}, running={D1: 1})
    assert ask("work-conserving", turn, behind) == Placement(
        D1, None, PlacementReason.SPILLED, True
    )
    stalled = replace(behind, running={D1: 5})
    assert ask("work-conserving", turn, stalled) == Placement(
        D1, P0, PlacementReason.LARGE_APPEND, True
    )


def test_small_appends_stay_with_a_limit() -> None:
    turn = a_turn_view(input_tokens=10_067, pinned=D0, resident=10_000)
    for name in ("work-conserving", "work-conserving-tails", "conserve-pack"):
        assert ask(name, turn, IDLE) == Placement(D0, None, PlacementReason.PINNED, True, 2047)


@given(
    pending=st.integers(0, 200_000),
    running=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    waiting=st.integers(0, 9),
    free=st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)),
    tokens=st.integers(1, 100_000),
)
def test_a_spill_has_room_and_pays(
    pending: int, running: tuple[int, int], waiting: int, free: tuple[int, int], tokens: int
) -> None:
    cluster = replace(
        IDLE,
        pending={P0: pending},
        running=dict(zip((D0, D1), running, strict=True)),
        line=(waiting, waiting * 1000),
        free={D0: free[0], D1: free[1], P0: 0},
    )
    answer = ask("work-conserving", a_turn_view(input_tokens=tokens), cluster)
    if not isinstance(answer, Placement):
        return
    assert cluster.free[answer.decoder] >= tokens
    if answer.reason is PlacementReason.SPILLED:
        saved_s = 50e-6 * (pending + waiting * tokens)
        assert saved_s > 2 * 60e-6 * tokens * cluster.running[answer.decoder]
    else:
        assert answer.prefiller == P0


def test_a_conversation_stays_on_a_prefiller_that_would_answer_faster() -> None:
    kept = Placement(P0, None, PlacementReason.KEPT_ON_PREFILLER, True)
    busy = replace(
        IDLE,
        running={D0: 4, D1: 4, P0: 1},
        paces={D0: Pace(0.03, 4), D1: Pace(0.03, 4), P0: Pace(0.02, 2)},
    )
    name = "work-conserving-tails"
    assert ask(name, FIRST, busy) == kept
    assert ask("work-conserving", FIRST, busy) != kept
    slower = replace(busy, paces={**busy.paces, P0: Pace(0.06, 2)})
    for cluster in (
        slower,
        replace(busy, pending={P0: 100}),
        replace(busy, line=(1, 100)),
        replace(busy, free={D0: 50_000, D1: 90_000, P0: 9_999}),
    ):
        assert ask(name, FIRST, cluster) != kept


def test_a_prefiller_with_room_takes_what_no_decoder_has_room_for() -> None:
    full = replace(IDLE, free={D0: 100, D1: 200, P0: 90_000}, running={D0: 5, D1: 5, P0: 9})
    kept = Placement(P0, None, PlacementReason.KEPT_ON_PREFILLER, True)
    full = replace(full, paces={P0: Pace(0.5, 9)})
    assert ask("work-conserving-tails", FIRST, full) == kept
    assert ask("work-conserving", FIRST, full) == Defer(DeferReason.NO_KV_ROOM)
    queued = replace(full, pending={P0: 10_001})
    assert ask("work-conserving-tails", FIRST, queued) == Defer(DeferReason.NO_KV_ROOM)


def test_kv_is_never_handed_off_to_a_prefiller() -> None:
    turn = replace(
        a_turn_view(input_tokens=30_000, pinned=P0), phase_one_cause=PhaseOneCause.PREFIX_MISSING
    )
    for cluster in (IDLE, replace(IDLE, pending={P0: 90_000})):
        answer = ask("work-conserving-tails", turn, cluster)
        assert isinstance(answer, Placement)
        assert answer.decoder in (D0, D1)


def test_a_large_append_stays_on_the_prefiller_that_has_the_conversation() -> None:
    turn = a_turn_view(input_tokens=30_000, pinned=P0, resident=20_000)
    answer = ask("work-conserving-tails", turn, IDLE)
    assert answer == Placement(P0, None, PlacementReason.PINNED, True)


def test_pack_fills_the_fullest_decoder_that_keeps_its_target() -> None:
    paces = {D0: Pace(0.02, 4), D1: Pace(0.02, 4)}
    cluster = replace(IDLE, running={D0: 4, D1: 0}, paces=paces)
    answers = [
        ask("conserve-pack", FIRST, replace(cluster, running={D0: n, D1: 0}), tbt_target_s=0.05)
        for n in (4, 7, 8)
    ]
    # 20 ms at 4 turns: 8 turns are expected to take 40 ms, 9 more than the 0.8 x 50 ms there are.
    decoders = [answer.decoder for answer in answers if isinstance(answer, Placement)]
    assert decoders == [D0, D0, D1]


def test_pack_without_any_decoder_that_keeps_its_target_takes_the_fastest() -> None:
    paces = {D0: Pace(0.09, 4), D1: Pace(0.08, 4)}
    answer = ask("conserve-pack", FIRST, replace(IDLE, running={D0: 4, D1: 4}, paces=paces))
    assert answer == Placement(D1, P0, PlacementReason.FIRST_TURN, True)


M0, M1 = WorkerId("m0"), WorkerId("m1")
MIXED = StubCluster(free={M0: 50_000, M1: 90_000}, capacity=100_000, rates={M0: 50e-6, M1: 50e-6})


def on(worker: WorkerId) -> Placement:
    return Placement(worker, None, PlacementReason.FIRST_TURN, True)


def test_on_mixed_workers_a_conversation_begins_where_it_holds_up_least() -> None:
    assert ask("work-conserving", FIRST, MIXED) == on(M1), "all idle: where most room is"
    assert ask("work-conserving", FIRST, replace(MIXED, running={M1: 1})) == on(M0)
    assert ask("work-conserving", FIRST, replace(MIXED, pending={M1: 500})) == on(M0)
    # 21,000 tokens before it are less than two stalls of 10,000 that count twice.
    waits = replace(MIXED, pending={M1: 21_000}, running={M0: 2})
    assert ask("work-conserving", FIRST, waits) == on(M1)
    unseen = replace(MIXED, rates={}, running={M1: 3}, pending={M0: 100})
    assert ask("work-conserving", FIRST, unseen) == on(M0), "nothing was seen: by tokens"


def test_mixed_workers_without_room_are_waited_for() -> None:
    full = replace(MIXED, free={M0: 100, M1: 9_999})
    assert ask("work-conserving", FIRST, full) == Defer(DeferReason.NO_KV_ROOM)
    endless = a_turn_view(input_tokens=100_001)
    assert isinstance(ask("work-conserving", endless, MIXED), Reject)


def test_a_conversation_on_a_mixed_worker_stays_whatever_it_appends() -> None:
    for prompt in (20_067, 60_000):
        turn = a_turn_view(input_tokens=prompt, pinned=M0, resident=20_000)
        answer = ask("work-conserving", turn, replace(MIXED, running={M0: 9}))
        assert isinstance(answer, Placement)
        assert (answer.decoder, answer.prefiller) == (M0, None)
        assert answer.reason is PlacementReason.PINNED


BOTH = replace(
    IDLE,
    free={**IDLE.free, M0: 90_000},
    running={D0: 4, D1: 4, M0: 2},
    paces={D0: Pace(0.03, 4), D1: Pace(0.03, 4), M0: Pace(0.02, 2)},
)


def test_beside_a_pair_a_mixed_worker_serves_whom_it_would_answer_faster() -> None:
    assert ask("work-conserving", FIRST, BOTH) == on(M0)
    slower = replace(BOTH, paces={**BOTH.paces, M0: Pace(0.06, 2)})
    assert ask("work-conserving", FIRST, slower).decoder == D1  # type: ignore[union-attr]
    full = replace(slower, free={D0: 0, D1: 0, P0: 0, M0: 90_000})
    assert ask("work-conserving", FIRST, full) == on(M0), "no decoder has room"
    alone = replace(slower, prefillers=())
    assert ask("work-conserving", FIRST, alone) == on(M0), "nobody prefills for the decoders"
