"""Workers that are lost on the way: every turn goes on, and no joule or token is lost."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, WorkerId
from conserve_sglang.policy import PlacementReason
from conserve_sglang.sim import ConversationRecord, Deployment, Outcome, Simulation, WorkerLoss
from conserve_sglang.workload import ConversationPlan
from tests.sim.builders import PERF, a_deployment, a_plan, play
from tests.sim.test_power import paper_like


def losing(deployment: Deployment, *losses: WorkerLoss) -> Deployment:
    return replace(deployment, losses=losses)


def loss(name: str, at_s: float, noticed: float = 0.0, back: float | None = None) -> WorkerLoss:
    return WorkerLoss(
        worker_id=WorkerId(name), at_s=at_s, noticed_after_s=noticed, back_after_s=back
    )


def test_a_stream_goes_on_elsewhere_from_the_tokens_its_client_has() -> None:
    plan = a_plan("a", (1024, 200))
    calm = play(a_deployment("p0", "d0", "d1"), [plan])["a"].turns[0]
    decoder = calm.decoder
    at_s = (calm.first_token_at_s + calm.last_token_at_s) / 2
    deployment = losing(a_deployment("p0", "d0", "d1"), loss(decoder, at_s, noticed=0.5))
    record = play(deployment, [plan])["a"]
    (turn,) = record.turns
    assert turn.decoder not in (decoder, "p0")
    assert turn.reason is PlacementReason.DECODER_LOST
    assert turn.first_token_at_s == calm.first_token_at_s
    assert (turn.input_tokens, turn.output_tokens) == (1024, 200)
    assert sum(run.num_gaps for run in record.last_turn_gaps) == 199
    gaps_s = math.fsum(run.total_s for run in record.last_turn_gaps)
    assert gaps_s == pytest.approx(turn.last_token_at_s - turn.first_token_at_s)
    longest = max(run.last_s for run in record.last_turn_gaps)
    # the loss is noticed, prompt and answer are prefilled again, and their KV moves
    told = 1024 + 100
    again_s = PERF.prefill(0, told) + PERF.transfer_s(told)
    assert longest == pytest.approx(0.5 + again_s, abs=0.05)


def test_a_prefiller_lost_before_the_kv_moved_costs_a_prefill_elsewhere() -> None:
    plan = a_plan("a", (16_384, 10))
    first = play(a_deployment("p0", "p1", "d0"), [plan])["a"].turns[0].prefiller
    assert first is not None
    deployment = losing(a_deployment("p0", "p1", "d0"), loss(first, 0.3, noticed=1.0))
    turn = play(deployment, [plan])["a"].turns[0]
    assert turn.prefiller not in (first, None)
    assert turn.attempts == 2
    assert turn.ttft_s == pytest.approx(1.3 + 0.6217 + PERF.transfer_s(16_384))


def test_a_prefiller_lost_after_the_kv_moved_is_not_missed() -> None:
    plan = a_plan("a", (16_384, 500))
    calm = play(a_deployment("p0", "d0"), [plan])["a"].turns[0]
    deployment = losing(a_deployment("p0", "d0"), loss("p0", calm.first_token_at_s + 0.1))
    assert play(deployment, [plan])["a"].turns[0].last_token_at_s == calm.last_token_at_s


def test_a_conversation_at_rest_on_a_lost_decoder_starts_over() -> None:
    plan = a_plan("a", (1024, 10), (64, 10), gap_s=50.0)
    first = play(a_deployment("p0", "d0", "d1"), [plan])["a"].turns[0].decoder
    deployment = losing(a_deployment("p0", "d0", "d1"), loss(first, 10.0))
    second = play(deployment, [plan])["a"].turns[1]
    assert second.decoder != first
    assert second.reason is PlacementReason.DECODER_LOST
    assert second.prefiller == "p0"


def test_turns_wait_for_the_only_decoder_until_it_is_back() -> None:
    plans = [a_plan("a", (1024, 500)), a_plan("b", (1024, 20), at=3.0)]
    deployment = losing(a_deployment("p0", "d0"), loss("d0", 2.0, noticed=2.0, back=10.0))
    records = play(deployment, plans)
    assert all(record.outcome is Outcome.ANSWERED for record in records.values())
    assert records["b"].turns[0].first_token_at_s > 14.0
    assert records["a"].turns[0].first_token_at_s < 2.0
    assert records["a"].e2e_s > 14.0


def test_nobody_to_go_on_with_ends_a_conversation_with_a_reason() -> None:
    deployment = losing(a_deployment("p0", "d0"), loss("d0", 1.0))
    deployment = replace(deployment, settings=replace(deployment.settings, queue_timeout_s=5.0))
    record = play(deployment, [a_plan("a", (1024, 500))])["a"]
    assert record.outcome is Outcome.REJECTED
    assert record.why
    assert record.modelled_unanswered_j > 0


@given(
    lost=st.lists(
        st.tuples(
            st.sampled_from(["p0", "p1", "d0", "d1", "d2"]),
            st.floats(0.01, 40.0),
            st.sampled_from([0.0, 0.3, 4.0]),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one[0],
    ),
    policy=st.sampled_from(["conserve", "stock-pd", "colocated", "round-robin"]),
    capacity=st.sampled_from([25_000, 60_000, 300_000]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_lost_turns_are_answered_and_joules_are_kept(
    lost: list[tuple[str, float, float]], policy: str, capacity: int, seed: int
) -> None:
    losses = [loss(name, at_s, noticed, back=6.0) for name, at_s, noticed in lost]
    deployment = losing(
        a_deployment("p0", "p1", "d0", "d1", "d2", policy=policy, capacity=capacity), *losses
    )
    settings = replace(deployment.settings, max_attempts=20, max_continuations=20)
    deployment = replace(deployment, settings=settings)
    plans = paper_like(12, 1.0, seed)
    records = play(deployment, plans)  # checks the books and the pools after every event
    assert len(records) == len(plans)
    answered = all(record.outcome is Outcome.ANSWERED for record in records.values())
    for record in records.values():
        if record.outcome is Outcome.ANSWERED:
            asked = [(t.input_tokens, t.output_tokens) for t in record.plan.turns]
            assert [(t.input_tokens, t.output_tokens) for t in record.turns] == asked
            last = record.turns[-1]
            assert sum(run.num_gaps for run in record.last_turn_gaps) == last.output_tokens - 1
            gaps_s = math.fsum(run.total_s for run in record.last_turn_gaps)
            assert gaps_s == pytest.approx(last.last_token_at_s - last.first_token_at_s)
    if answered:
        spent, worked = joules(deployment, plans)
        assert spent == pytest.approx(worked, rel=1e-9)


def joules(deployment: Deployment, plans: list[ConversationPlan]) -> tuple[float, float]:
    """Of turns, and of workers."""
    records: list[ConversationRecord] = []
    simulation = Simulation(deployment, records.append)
    simulation.run(plans)
    workers = simulation.energy(simulation.kernel.now)
    return (
        math.fsum(record.modelled_j for record in records),
        math.fsum(w.prefill_j + w.append_prefill_j + w.decode_j for w in workers),
    )


def test_a_lost_prefiller_comes_back_without_what_was_on_its_way_to_it() -> None:
    simulation = Simulation(a_deployment("p0", "d0"), lambda record: None)
    prefiller = simulation.workers[WorkerId("p0")]
    prefiller.lose(0.0)
    prefiller.hold_copy(ConversationId("a"), 1000)
    prefiller.come_back()
    assert prefiller.pool.resident(ConversationId("a")) == 0
