"""Roles that bend: when a phase 1 is spilled, and when a conversation stays on its prefiller."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.policy.api import Defer, DeferReason, Pace, Placement, PlacementReason
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
    # The wait saved is 16,000 x 50 us = 0.8 s; prefilling here stalls each answer for 0.6 s.
    behind = replace(IDLE, busy=(P0,), pending={P0: 16_000}, running={D0: 1, D1: 2})
    assert ask("work-conserving", FIRST, behind) == SPILLED_TO_D0
    fuller = replace(behind, running={D0: 2, D1: 2})
    assert ask("work-conserving", FIRST, fuller) == Defer(DeferReason.PREFILL_BACKLOG)
    # Each turn that waits behind is spared one prefill of 0.5 s.
    assert ask("work-conserving", FIRST, replace(fuller, line=(1, 9_000))) == SPILLED_TO_D0
    # But not if they wait for KV room: there is some for one turn alone.
    tight = replace(fuller, line=(1, 9_000), free={D0: 10_000, D1: 9_000, P0: 0})
    assert isinstance(ask("work-conserving", FIRST, tight), Defer)
    assert isinstance(ask("work-conserving", FIRST, behind, stall_weight=2), Defer)


def test_prefills_that_a_decoder_has_before_it_count() -> None:
    behind = replace(IDLE, pending={P0: 16_000, D0: 20_000}, running={D1: 1})
    answer = ask("work-conserving", FIRST, behind)
    assert answer == Placement(D1, None, PlacementReason.SPILLED, True)


def test_nothing_is_spilled_before_a_prefill_was_seen() -> None:
    unseen = replace(IDLE, rates={}, busy=(P0,), pending={P0: 90_000})
    assert ask("work-conserving", FIRST, unseen) == Defer(DeferReason.PREFILL_BACKLOG)


def test_a_decoder_never_seen_to_prefill_is_taken_to_be_like_the_prefiller() -> None:
    behind = replace(IDLE, rates={P0: 50e-6}, pending={P0: 12_000}, running={D0: 1, D1: 9})
    assert ask("work-conserving", FIRST, behind) == SPILLED_TO_D0


def test_a_large_append_is_spilled_to_the_pin_alone() -> None:
    turn = a_turn_view(input_tokens=30_000, pinned=D1, resident=20_000)
    behind = replace(IDLE, pending={P0: 16_000}, running={D1: 1})
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
        assert saved_s > 60e-6 * tokens * cluster.running[answer.decoder]
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
