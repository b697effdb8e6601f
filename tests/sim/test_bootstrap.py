"""What the first handoff of a prefiller and a decoder takes, once in the lives of both."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    A40_QWEN3_0_6B_200W,
    Deployment,
    PerfModel,
    WorkerLoss,
    perf_model_of,
)
from conserve_sglang.workload import ConversationPlan
from tests.profiles.builders import a_profile
from tests.sim.builders import a_deployment, a_plan, play

FIRST_S = 0.25
WITHOUT = perf_model_of(a_profile())
WITH = perf_model_of(a_profile(first_handoff_s=FIRST_S))
FAR_APART_S = 100.0
PLAN = a_plan("c", (600, 50), (100, 50))


def with_costs(perf: PerfModel, plain: Deployment) -> Deployment:
    return replace(plain, workers=tuple(replace(each, perf=perf) for each in plain.workers))


def deployment(perf: PerfModel, *names: str, policy: str = "conserve") -> Deployment:
    return with_costs(perf, a_deployment(*names, policy=policy))


def loss(name: str, at_s: float) -> WorkerLoss:
    return WorkerLoss(worker_id=WorkerId(name), at_s=at_s, noticed_after_s=1.0, back_after_s=5.0)


def later_first_tokens_s(
    plans: Sequence[ConversationPlan], *names: str, losses: tuple[WorkerLoss, ...] = ()
) -> list[float]:
    """By how much each conversation's first token comes later for the first handoffs."""
    found = []
    for perf in (WITH, WITHOUT):
        records = play(replace(deployment(perf, *names), losses=losses), plans)
        found.append([records[plan.conversation_id].turns[0].ttft_s for plan in plans])
    return [one - other for one, other in zip(*found, strict=True)]


def one_by_one(count: int) -> list[ConversationPlan]:
    return [a_plan(f"c{n}", (600, 20), at=FAR_APART_S * n) for n in range(count)]


def test_what_a_profile_does_not_tell_is_nothing_and_said_to_be() -> None:
    assert WITHOUT.first_handoff_s == 0.0
    assert "first_handoff" in WITHOUT.unknown
    assert WITH.first_handoff_s == FIRST_S
    assert "first_handoff" not in WITH.unknown
    assert "first_handoff" not in perf_model_of(a_profile(first_handoff_s=0.0)).unknown
    assert all(perf.first_handoff_s == 0.0 for perf in (A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W))


def test_a_pair_pays_once() -> None:
    assert later_first_tokens_s(one_by_one(3), "p0", "d0") == pytest.approx([FIRST_S, 0, 0])


def test_each_pair_pays_for_itself() -> None:
    plans = [a_plan(f"c{n}", (600, 20), (10, 20), at=10.0 * n, gap_s=90.0) for n in range(3)]
    late = later_first_tokens_s(plans, "p0", "d0", "d1", "d2")  # each holds a decoder's KV
    assert late == pytest.approx([FIRST_S] * 3)


def test_a_turn_that_comes_meanwhile_waits_for_the_rest_of_it() -> None:
    """And not for a bootstrap of its own: it is prefilled right behind the first one."""
    plans = [a_plan("a", (600, 20)), a_plan("b", (600, 20), at=0.1)]
    records = play(deployment(WITH, "p0", "d0"), plans)
    first, second = (records[name].turns[0] for name in ("a", "b"))
    assert first.prefill_at_s == pytest.approx(FIRST_S)
    assert second.prefill_at_s == pytest.approx(FIRST_S + WITH.prefill(0, 600), abs=0.02)


@pytest.mark.parametrize("name", ["p0", "d0"])
def test_a_worker_that_was_lost_and_is_back_is_met_anew(name: str) -> None:
    plans = one_by_one(4)
    late = later_first_tokens_s(plans, "p0", "d0", losses=(loss(name, 1.5 * FAR_APART_S),))
    assert late == pytest.approx([FIRST_S, 0, FIRST_S, 0])


def test_another_workers_loss_changes_nothing_between_two_others() -> None:
    plans = one_by_one(3)
    late = later_first_tokens_s(plans, "p0", "d0", "d1", losses=(loss("d1", 1.5 * FAR_APART_S),))
    assert late == pytest.approx([FIRST_S, 0, 0])


def test_a_loss_during_the_bootstrap_costs_no_turn() -> None:
    for name in ("p0", "d0"):
        losing = replace(deployment(WITH, "p0", "d0"), losses=(loss(name, 0.1),))
        turns = play(losing, [PLAN])["c"].turns
        assert [turn.output_tokens for turn in turns] == [50, 50]
        assert turns[0].prefill_at_s == pytest.approx(0.1 + 1.0 + 5.0 + FIRST_S)


def test_kv_that_is_fetched_first_waits_as_well() -> None:
    """A later turn goes back to a prefiller that was lost meanwhile, and takes its KV along."""
    plan = a_plan("c", (600, 5), (100, 5), gap_s=100.0)
    turns = []
    for perf in (WITH, WITHOUT):
        always = with_costs(perf, a_deployment("p0", "d0", policy="coin-flip", error_rate=1))
        turns.append(play(replace(always, losses=(loss("p0", 50.0),)), [plan])["c"].turns)
    assert [turn.prefiller for turn in turns[0]] == ["p0", "p0"]
    late = [one.ttft_s - other.ttft_s for one, other in zip(*turns, strict=True)]
    assert late == pytest.approx([FIRST_S, FIRST_S])


def test_a_mixed_worker_has_nobody_to_meet() -> None:
    for policy in ("colocated", "round-robin"):
        with_it, without = (
            play(deployment(perf, "m0", policy=policy), [PLAN])["c"] for perf in (WITH, WITHOUT)
        )
        assert with_it == without
