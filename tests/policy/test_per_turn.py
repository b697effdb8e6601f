"""Baselines that decide for every later turn anew."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.policy.api import (
    Defer,
    DeferReason,
    History,
    Pace,
    PhaseOneCause,
    Placement,
    PlacementReason,
)
from tests.builders import D0, D1, P0, a_turn_view
from tests.policy.stub import StubCluster, ask

CLUSTER = StubCluster(free={D0: 50_000, D1: 90_000, P0: 0}, prefillers=(P0,), capacity=100_000)
TAIL = a_turn_view(input_tokens=10_067, pinned=D0, resident=10_000)


@pytest.mark.parametrize("name", ["conserve-blind", "static-ppd"])
def test_the_blind_stay_whatever_is_appended(name: str) -> None:
    turn = a_turn_view(input_tokens=40_000, pinned=D0, resident=1_000)
    assert ask(name, turn, CLUSTER) == Placement(D0, None, PlacementReason.PINNED, True)
    turn = replace(turn, phase_one_cause=PhaseOneCause.PREFIX_MISSING)
    answer = ask(name, turn, CLUSTER)
    assert isinstance(answer, Placement)
    assert (answer.prefiller, answer.decoder) == (P0, D0)


def test_static_ppd_takes_the_decoder_with_fewest_turns() -> None:
    cluster = replace(CLUSTER, running={D0: 2, D1: 3})
    turn = a_turn_view(input_tokens=100)
    answers = {name: ask(name, turn, cluster) for name in ("static-ppd", "conserve-blind")}
    assert answers["static-ppd"] == Placement(D0, P0, PlacementReason.FIRST_TURN, True)
    assert answers["conserve-blind"] == Placement(D1, P0, PlacementReason.FIRST_TURN, True)


def tail(number: int) -> Placement:
    turn = replace(TAIL, arrival_number=number)
    answer = ask("coin-flip", turn, CLUSTER, error_rate=0.3, seed=7)
    assert isinstance(answer, Placement)
    return answer


def test_the_coin_falls_at_its_rate_and_always_the_same() -> None:
    wrong = [number for number in range(4000) if tail(number).prefiller is not None]
    assert 0.27 < len(wrong) / 4000 < 0.33
    assert wrong == [number for number in range(4000) if tail(number).prefiller is not None]
    gone_wrong = tail(wrong[0])
    assert gone_wrong == Placement(D0, P0, PlacementReason.OFFLOADED, True, None, True)


def test_a_wrong_turn_waits_for_the_prefiller_as_others_do() -> None:
    busy = replace(CLUSTER, busy=(P0,))
    answer = ask("coin-flip", TAIL, busy, error_rate=1)
    assert answer == Defer(DeferReason.PREFILL_BACKLOG)


@given(number=st.integers(0, 10**9), seed=st.integers(0, 99))
def test_a_coin_that_never_errs_pins_blindly(number: int, seed: int) -> None:
    turn = replace(TAIL, arrival_number=number)
    answer = ask("coin-flip", turn, CLUSTER, error_rate=0, seed=seed)
    assert answer == ask("conserve-blind", turn, CLUSTER)


@pytest.mark.parametrize(
    ("new", "context", "is_local"),
    [(67, 10_000, True), (2047, 10_000, True), (2048, 10_000, False), (2000, 500, False)],
)
def test_dynamo_goes_by_new_tokens_and_their_share(new: int, context: int, is_local: bool) -> None:
    turn = a_turn_view(input_tokens=context + new, pinned=D0, resident=context)
    answer = ask("dynamo-like", turn, CLUSTER)
    assert isinstance(answer, Placement)
    assert (answer.prefiller is None) == is_local
    assert answer.decoder == D0, "session affinity"


def test_dynamo_with_a_bounded_queue_prefills_on_decoders() -> None:
    turn = a_turn_view(input_tokens=10_000)
    full = replace(CLUSTER, busy=(P0,), pending={P0: 12_000}, line=(1, 8_000))
    assert isinstance(ask("dynamo-like", turn, full), Defer)
    answer = ask("dynamo-like", turn, full, max_prefill_queue=2)
    assert answer == Placement(D1, None, PlacementReason.SPILLED, True)
    assert isinstance(ask("dynamo-like", turn, full, max_prefill_queue=3), Defer)


def test_ampd_goes_where_the_prefill_is_sooner() -> None:
    turn = a_turn_view(input_tokens=15_000, pinned=D0, resident=10_000)
    idle = replace(CLUSTER, rates={P0: 40e-6, D0: 50e-6})
    answer = ask("ampd-like", turn, idle)
    assert answer == Placement(D0, P0, PlacementReason.OFFLOADED, True, None, True)
    behind = replace(idle, pending={P0: 10_000})
    assert ask("ampd-like", turn, behind) == Placement(D0, None, PlacementReason.PINNED, True)


def test_ampd_spares_answers_a_stall_that_the_predicted_length_cannot_bear() -> None:
    turn = a_turn_view(input_tokens=15_000, pinned=D0, resident=10_000)
    busy = replace(
        CLUSTER, rates={P0: 40e-6, D0: 50e-6}, pending={P0: 10_000}, paces={D0: Pace(0.02, 4)}
    )
    talks_long = replace(turn, history=History(num_answers=2, output_tokens=2000))
    talks_short = replace(turn, history=History(num_answers=2, output_tokens=10))
    for view, prefiller in ((talks_long, None), (talks_short, P0)):
        answer = ask("ampd-like", view, busy)
        assert isinstance(answer, Placement)
        assert answer.prefiller == prefiller


def test_ampd_knows_nothing_before_it_has_seen_a_prefill() -> None:
    answer = ask("ampd-like", TAIL, CLUSTER)
    assert answer == Placement(D0, None, PlacementReason.PINNED, True)


def test_kv_that_does_not_come_back_is_not_fetched() -> None:
    full = replace(CLUSTER, free={D0: 10, D1: 90_000, P0: 0})
    answer = ask("coin-flip", TAIL, full, error_rate=1)
    assert answer == Placement(D1, P0, PlacementReason.OFFLOADED, True)


def test_colocated_by_backlog() -> None:
    turn = a_turn_view(input_tokens=100)
    cluster = replace(CLUSTER, pending={D1: 9_000}, running={D0: 8})
    assert ask("colocated", turn, cluster, choose="least_backlog") == Placement(
        D0, None, PlacementReason.FIRST_TURN, True
    )
    assert ask("colocated", turn, cluster) == Placement(D1, None, PlacementReason.FIRST_TURN, True)
