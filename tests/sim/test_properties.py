"""Random workloads on random deployments keep every promise."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import POLICIES
from conserve_sglang.sim import Outcome
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
