"""Modelled joules: of single cases that can be written down, and that parts sum to the whole."""

import math
import random
from dataclasses import replace

import pytest

from conserve_sglang.policy import POLICIES
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    A40_QWEN3_0_6B_200W,
    ConversationRecord,
    Deployment,
    Simulation,
    Tally,
)
from conserve_sglang.workload import (
    ConversationPlan,
    mini_swe_conversations,
    poisson_arrivals,
    with_arrivals,
)
from tests.sim.builders import PERF, a_deployment, a_plan

POWER = PERF.power
assert POWER is not None


def simulate(
    deployment: Deployment, plans: list[ConversationPlan]
) -> tuple[Simulation, list[ConversationRecord]]:
    records: list[ConversationRecord] = []
    simulation = Simulation(deployment, records.append)
    simulation.run(plans)
    return simulation, records


def step_j(num_requests: int, kv_tokens: int) -> float:
    assert POWER is not None
    shared = POWER.decode_step_j + POWER.decode_j_per_request * num_requests
    return shared + POWER.decode_j_per_kv_token * kv_tokens


def paper_like(count: int, rate: float, seed: int = 5) -> list[ConversationPlan]:
    rng = random.Random(seed)
    return list(with_arrivals(mini_swe_conversations(count, rng), poisson_arrivals(rate, rng)))


def test_a_lone_conversation_uses_its_prefills_and_its_single_steps() -> None:
    plan = a_plan("a", (16_384, 120), (67, 40))
    simulation, (record,) = simulate(a_deployment("m0", policy="colocated"), [plan])
    (worker,) = simulation.energy(record.e2e_s)
    first = PERF.prefill_cost(0, 16_384)
    assert first.joules == pytest.approx(0.6217 * 273, rel=0.01)  # the profile's watts there
    append = PERF.prefill_cost(16_504, 16_571)
    steps = [step_j(1, 16_385 + i) for i in range(119)]
    later = [step_j(1, 16_572 + i) for i in range(39)]
    assert worker.prefill_j == pytest.approx(first.joules)
    assert worker.append_prefill_j == pytest.approx(append.joules)
    assert worker.decode_j == pytest.approx(math.fsum(steps + later))
    assert worker.idle_j == pytest.approx(0, abs=1e-6)  # it was never idle
    one, two = record.turns
    assert one.modelled_prefill_j == pytest.approx(first.joules)
    assert one.modelled_decode_j == pytest.approx(math.fsum(steps))
    assert two.modelled_prefill_j == pytest.approx(append.joules)
    assert two.modelled_decode_j == pytest.approx(math.fsum(later))


def test_turns_of_a_batch_share_its_steps_by_their_kv_tokens() -> None:
    assert POWER is not None
    plans = [a_plan("a", (1024, 50)), a_plan("b", (3072, 50))]
    _, records = simulate(a_deployment("m0", policy="colocated"), plans)
    short, long = (record.turns[0].modelled_decode_j for record in records)
    whole = math.fsum(step_j(2, 1025 + 3073 + 2 * i) for i in range(49))
    assert short + long == pytest.approx(whole)
    assert long - short == pytest.approx(49 * 2048 * POWER.decode_j_per_kv_token)


def test_idle_is_billed_for_the_seconds_in_which_a_worker_does_nothing() -> None:
    plan = a_plan("a", (1024, 50), (64, 50), gap_s=100.0)
    simulation, (record,) = simulate(a_deployment("m0", "m1", policy="colocated"), [plan])
    used, unused = sorted(simulation.energy(record.e2e_s), key=lambda worker: -worker.busy_s)
    assert POWER is not None
    assert unused.total_j == unused.idle_j == pytest.approx(POWER.idle_w * record.e2e_s)
    assert used.idle_j == pytest.approx(POWER.idle_w * 100)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pool_tokens", [30_000, 300_000])
def test_joules_of_turns_sum_to_those_of_workers(policy: str, pool_tokens: int) -> None:
    """With a small pool turns are retracted, and local ones refused."""
    deployment = a_deployment(
        "p0", "d0", "d1", "d2", policy=policy, capacity=pool_tokens, chunk_tokens=2944
    )
    simulation, records = simulate(deployment, paper_like(40, 2.0))
    workers = simulation.energy(simulation.kernel.now)
    phases = math.fsum(w.prefill_j + w.append_prefill_j + w.decode_j for w in workers)
    assert math.fsum(record.modelled_j for record in records) == pytest.approx(phases, rel=1e-9)
    assert phases > 0
    assert all(w.busy_s <= simulation.kernel.now * (1 + 1e-9) for w in workers)


def test_the_summary_tells_the_whole_and_what_it_is_per_turn_and_token() -> None:
    deployment = a_deployment("p0", "d0", "d1", "d2", capacity=308_448)
    tally = Tally(PERF)
    simulation = Simulation(deployment, tally)
    simulation.run(paper_like(30, 1.0))
    summary = tally.summary(simulation)
    energy = summary.modelled_energy
    assert energy is not None
    parts = energy.prefill_j + energy.append_prefill_j + energy.decode_j + energy.idle_j
    assert energy.total_j == pytest.approx(parts)
    assert energy.turn_j == pytest.approx(energy.total_j / summary.num_turns)
    assert energy.conversation_j == pytest.approx(energy.total_j / 30)
    assert energy.output_token_j == pytest.approx(energy.total_j / summary.output_tokens)
    assert energy.counted_token_j is not None
    assert energy.counted_tokens_per_j == pytest.approx(1 / energy.counted_token_j)
    assert energy.output_token_j is not None
    assert energy.counted_token_j < energy.output_token_j / 50  # cached history counts each turn
    assert energy.mean_w == pytest.approx(energy.total_j / summary.duration_s)
    assert energy.mean_w is not None
    assert 4 * 76 < energy.mean_w < 4 * 300
    assert tally.summary().modelled_energy is None


def test_a_capped_decoder_never_draws_more_than_its_cap() -> None:
    plans = paper_like(60, 3.0)
    found = []
    for perf in (A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W):
        deployment = a_deployment("p0", "d0", capacity=308_448)
        deployment = replace(
            deployment,
            workers=tuple(
                replace(worker, perf=perf) if worker.spec.worker_id == "d0" else worker
                for worker in deployment.workers
            ),
        )
        simulation, _ = simulate(deployment, plans)
        found.append(next(w for w in simulation.energy(simulation.kernel.now) if w.decode_j > 0))
    full, capped = found
    assert capped.decode_j / capped.busy_s <= 200
    assert capped.decode_j < full.decode_j


def test_without_watts_there_are_no_joules() -> None:
    deployment = a_deployment("m0", policy="colocated")
    silent = replace(deployment.workers[0], perf=replace(PERF, power=None))
    tally = Tally(PERF)
    simulation = Simulation(replace(deployment, workers=(silent,)), tally)
    simulation.run([a_plan("a", (1024, 50))])
    assert tally.summary(simulation).modelled_energy is None
    assert [worker.total_j for worker in simulation.energy(10.0)] == [0.0]
