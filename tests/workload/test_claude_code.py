"""The Claude-Code-shaped generator has the shape of the sessions it was fitted to."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench.fit_claude_code import sessions
from conserve_sglang.core.stats import percentile
from conserve_sglang.workload import (
    CLAUDE_CODE,
    ConversationPlan,
    Shape,
    claude_code_conversations,
    shape_of,
)
from conserve_sglang.workload.claude_code_params import LEVELS
from conserve_sglang.workload.quantiles import Quantiles

FILE = Path(__file__).parents[3] / "shared/data/claude_code_weka/claude_code_agent_turns.csv"

# Of claude_code_agent_turns.csv (360 sessions, 38 sub-agents), by `trace inspect`; and how close
# conversations drawn from it must come. Each session is drawn by one heavy-tailed table for all, so
# what hangs on how sessions differ (the middle prompt, the rare appends) is met only roughly.
EXPECTED = [
    ("turns_per_conversation.p50", 33, 0.15),
    ("turns_per_conversation.p95", 226, 0.10),
    ("first_input_tokens.p50", 21_408, 0.10),
    ("first_input_tokens.p95", 323_452, 0.15),
    ("input_tokens.p50", 106_543, 0.25),
    ("input_tokens.p95", 313_515, 0.10),
    ("output_tokens.p50", 215, 0.03),
    ("output_tokens.p95", 1571, 0.05),
    ("append_tokens.p5", 192, 0.10),
    ("append_tokens.p50", 709, 0.05),
    ("append_tokens.p95", 8064, 0.10),
    ("append_tokens.p99", 73_024, 0.35),
    ("gap_s.p50", 9.54, 0.10),
    ("gap_s.p95", 305.3, 0.15),
    ("first_turn_share", 0.280, 0.10),
    ("large_append_share", 0.206, 0.03),
    ("large_append_work", 0.838, 0.03),
    ("gap_over_60_s_share", 0.151, 0.05),
    ("gap_over_300_s_share", 0.0529, 0.10),
]


@pytest.fixture(scope="module")
def plans() -> list[ConversationPlan]:
    return list(claude_code_conversations(2000, random.Random(1)))


@pytest.fixture(scope="module")
def shape(plans: list[ConversationPlan]) -> Shape:
    return shape_of(plans)


@pytest.mark.parametrize(("name", "expected", "tolerance"), EXPECTED)
def test_the_shape_is_that_of_the_sessions(
    shape: Shape, name: str, expected: float, tolerance: float
) -> None:
    found: object = shape
    for part in name.split("."):
        found = getattr(found, part)
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_tenth_are_sub_agents_and_have_no_user(plans: list[ConversationPlan]) -> None:
    subs = [plan for plan in plans if "sub-agent" in plan.conversation_id]
    assert len(subs) / len(plans) == pytest.approx(38 / 398, abs=0.02)
    assert max(turn.gap_s for plan in subs for turn in plan.turns) < 134


def test_histories_are_rewritten_as_often_as_in_the_sessions(
    plans: list[ConversationPlan],
) -> None:
    pairs = [pair for plan in plans for pair in pairwise(plan.turns)]
    rewritten = sum(b.shared_tokens < 0.9 * a.input_tokens for a, b in pairs)
    assert rewritten / len(pairs) == pytest.approx((354 + 91) / 23_301, rel=0.15)


def test_shared_are_whole_blocks_and_every_turn_appends(plans: list[ConversationPlan]) -> None:
    later = [turn for plan in plans for turn in plan.turns[1:]]
    assert all(turn.shared_tokens % 64 == 0 for turn in later)
    assert all(turn.append_tokens >= 1 for turn in later)


def test_the_same_seed_draws_the_same() -> None:
    one, two = (list(claude_code_conversations(20, random.Random(5))) for _ in range(2))
    assert one == two != list(claude_code_conversations(20, random.Random(6)))


def test_shares_decide_the_kind() -> None:
    only = replace(CLAUDE_CODE, sub_agent_share=1.0)
    assert all(
        "sub-agent" in plan.conversation_id
        for plan in claude_code_conversations(20, random.Random(1), only)
    )
    resumed = replace(CLAUDE_CODE, sub_agent_share=0.0, resumed_share=1.0)
    first = [
        p.turns[0].input_tokens for p in claude_code_conversations(20, random.Random(1), resumed)
    ]
    assert min(first) > 60_000


def test_a_distribution_needs_a_value_for_each_level() -> None:
    with pytest.raises(ValueError, match="as many values as levels"):
        Quantiles(levels=(0.0, 1.0), values=(1.0,))


def test_the_parameters_are_the_files() -> None:
    if not FILE.exists():
        pytest.skip("the public sessions are not here")
    mains, subs = sessions(FILE)
    outputs = sorted(turn.output for turns in mains for turn in turns)
    assert CLAUDE_CODE.fresh.output.values == tuple(percentile(outputs, 100 * q) for q in LEVELS)
    turns = sorted(len(found) for found in subs)
    assert CLAUDE_CODE.sub_agent.num_turns.values == tuple(
        percentile(turns, 100 * q) for q in LEVELS
    )
