"""Small deployments and conversations to simulate."""

from collections.abc import Iterable

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.dispatch import Dispatcher, DispatchSettings, validate
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    ConversationRecord,
    Deployment,
    Simulation,
    SimWorkerSpec,
)
from conserve_sglang.workload import ConversationPlan, TurnPlan
from tests.builders import a_worker

PERF = A40_QWEN3_0_6B
PATIENT = DispatchSettings(max_phase_one_turns=10**6, queue_timeout_s=1e9)


def a_plan(
    name: str, *lengths: tuple[int, int], at: float = 0.0, gap_s: float = 0.0
) -> ConversationPlan:
    """A conversation of (append, output) turns whose context is carried over whole."""
    turns: list[TurnPlan] = []
    context = 0
    for append, output in lengths:
        turns.append(
            TurnPlan(
                input_tokens=context + append,
                output_tokens=output,
                shared_tokens=context,
                gap_s=gap_s if turns else 0.0,
            )
        )
        context += append + output
    return ConversationPlan(
        conversation_id=ConversationId(name), turns=tuple(turns), arrived_at_s=at
    )


def a_deployment(
    *names: str,
    policy: str = "conserve",
    capacity: int = 300_000,
    kv_pool_tokens: int | None = None,
    settings: DispatchSettings = PATIENT,
    chunk_tokens: int = 2944,
    **params: int,
) -> Deployment:
    """Workers named by role (p0, d0, m0), all alike."""
    return Deployment(
        workers=tuple(
            SimWorkerSpec(
                spec=a_worker(name, capacity),
                perf=PERF,
                kv_pool_tokens=kv_pool_tokens,
                chunk_tokens=chunk_tokens,
            )
            for name in names
        ),
        policy=make_policy(PolicyChoice(name=policy, params=params)),
        settings=settings,
    )


def play(
    deployment: Deployment, plans: Iterable[ConversationPlan]
) -> dict[str, ConversationRecord]:
    """Records by conversation; the dispatcher's books and the KV pools are checked all along."""
    records: list[ConversationRecord] = []

    def watch(dispatcher: Dispatcher) -> None:
        validate(dispatcher)
        for worker in simulation.workers.values():
            pool = worker.pool
            assert 0 <= pool.held + pool.idle <= pool.capacity
            assert min(pool.held, pool.idle) >= 0

    # The workers are announced while the simulation is built, before it can be looked at.
    simulation = Simulation(deployment, records.append)
    simulation._watch = watch
    simulation.run(sorted(plans, key=lambda plan: plan.arrived_at_s))
    for worker in simulation.workers.values():
        assert worker.pool.held == 0, "a turn left KV held"
    assert simulation.dispatcher.num_open_turns == 0
    return {record.plan.conversation_id: record for record in records}
