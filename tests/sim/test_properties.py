"""Random workloads on random deployments keep every promise."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, WorkerId
from conserve_sglang.core.tier import FlagValue, PolicyChoice
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import POLICIES, make_policy
from conserve_sglang.sim import Outcome, WorkerLoss
from conserve_sglang.workload import ConversationPlan, TurnPlan
from tests.sim.builders import a_deployment, play

HASTY = DispatchSettings(
    max_phase_one_turns=5,
    max_tail_turns=3,
    queue_timeout_s=30.0,
    reclaim_idle_s=5.0,
    conversation_ttl_s=60.0,
)


@st.composite
def plans(draw: st.DrawFn) -> list[ConversationPlan]:
    """Up to a dozen conversations; some lose part of their context between turns."""

    def turns() -> Iterator[TurnPlan]:
        context = 0
        for _ in range(draw(st.integers(1, 4))):
            shared = draw(st.integers(0, context)) if draw(st.booleans()) else context
            prompt = shared + draw(st.integers(1, 5000))
            output = draw(st.integers(1, 1500))
            yield TurnPlan(
                input_tokens=prompt,
                output_tokens=output,
                shared_tokens=shared,
                gap_s=draw(st.sampled_from([0.0, 0.5, 40.0, 100.0])),
            )
            context = prompt + output

    return [
        ConversationPlan(
            conversation_id=ConversationId(f"c{number}"),
            turns=tuple(turns()),
            arrived_at_s=draw(st.integers(0, 40)) / 4,
        )
        for number in range(draw(st.integers(0, 12)))
    ]


@pytest.mark.parametrize("policy", POLICIES)
@given(
    plans=plans(),
    capacity=st.integers(2000, 30_000),
    shortfall=st.sampled_from([0, 1500]),
    chunk=st.sampled_from([256, 2944]),
    hasty=st.booleans(),
    says_goodbye=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_turn_is_answered_once_and_no_pool_overflows(
    *,
    policy: str,
    plans: list[ConversationPlan],
    capacity: int,
    shortfall: int,
    chunk: int,
    hasty: bool,
    says_goodbye: bool,
) -> None:
    deployment = a_deployment(
        "p0", "p1", "d0", "d1",
        policy=policy,
        capacity=capacity,
        kv_pool_tokens=capacity - shortfall,
        chunk_tokens=chunk,
        **({"settings": HASTY} if hasty else {}),  # type: ignore[arg-type]
    )  # fmt: skip
    deployment = replace(deployment, says_goodbye=says_goodbye)
    records = play(deployment, plans)  # checks the books and the pools after every event
    assert set(records) == {plan.conversation_id for plan in plans}
    for plan in plans:
        record = records[plan.conversation_id]
        assert record.outcome is Outcome.ANSWERED or record.why
        if record.outcome is Outcome.ANSWERED:
            assert len(record.turns) == len(plan.turns)
        previous_end_s = plan.arrived_at_s
        for turn, planned in zip(record.turns, plan.turns, strict=False):
            assert turn.output_tokens == planned.output_tokens
            assert turn.cached_tokens <= planned.shared_tokens
            assert previous_end_s <= turn.arrived_at_s < turn.first_token_at_s
            assert turn.first_token_at_s <= turn.last_token_at_s
            previous_end_s = turn.last_token_at_s


VARIANTS: tuple[tuple[str, dict[str, FlagValue]], ...] = (
    ("work-conserving", {"by_history": True, "late_after_s": 3.0}),
    ("work-conserving-tails", {"by_history": True}),
    ("conserve-pack", {"by_history": True}),
    ("conserve", {"max_local_append_tokens": 100}),
    ("stock-pd", {"sticky": True}),
    ("colocated", {"choose": "least_backlog"}),
    ("coin-flip", {"error_rate": 1.0}),
    ("dynamo-like", {"max_prefill_queue": 2}),
    ("ampd-like", {"tbt_target_s": 0.01}),
)


@given(
    plans=plans(),
    choice=st.sampled_from(VARIANTS),
    names=st.sampled_from(
        [("p0", "d0"), ("p0", "p1", "d0", "d1"), ("m0", "m1"), ("p0", "d0", "m0")]
    ),
    capacity=st.integers(2000, 30_000),
    max_running=st.sampled_from([1, 2, 256]),
    lump=st.sampled_from([1, 16, 512]),
    interval=st.sampled_from([0, 1, 4]),
    losses=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0, 40), st.sampled_from([0.0, 0.5, 5.0])),
        max_size=3,
        unique_by=lambda loss: loss[0],
    ),
    hasty=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_promises_hold_whatever_workers_policies_and_losses(
    *,
    plans: list[ConversationPlan],
    choice: tuple[str, dict[str, FlagValue]],
    names: tuple[str, ...],
    capacity: int,
    max_running: int,
    lump: int,
    interval: int,
    losses: list[tuple[int, float, float]],
    hasty: bool,
) -> None:
    deployment = a_deployment(*names, capacity=capacity, **({"settings": HASTY} if hasty else {}))  # type: ignore[arg-type]
    workers = tuple(
        replace(
            worker,
            max_running=max_running,
            output_lump_tokens=lump,
            prefill_decode_interval=interval,
        )
        for worker in deployment.workers
    )
    lost = tuple(
        WorkerLoss(
            worker_id=WorkerId(names[number % len(names)]),
            at_s=at_s,
            noticed_after_s=noticed_s,
            back_after_s=1.0,
        )
        for number, at_s, noticed_s in losses
        if number < len(names)
    )
    policy = make_policy(PolicyChoice(name=choice[0], params=choice[1]))
    deployment = replace(deployment, workers=workers, policy=policy, losses=lost)
    records = play(deployment, plans)  # checks the books and the pools after every event
    assert set(records) == {plan.conversation_id for plan in plans}
    for record in records.values():
        if record.outcome is not Outcome.ANSWERED:
            assert record.why
            continue
        last, gaps = record.turns[-1], record.last_turn_gaps
        assert sum(run.num_gaps for run in gaps) == last.output_tokens - 1
        seconds = last.last_token_at_s - last.first_token_at_s
        assert math.fsum(run.total_s for run in gaps) == pytest.approx(seconds)
