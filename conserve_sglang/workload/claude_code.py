"""Conversations shaped like real Claude Code sessions and their sub-agents.

The parameters, with their source, are in `claude_code_params.py`. A next prompt is the previous one
and more (its answer, a tool's result, the user's words); it grows faster in the first turns. Now
and then the history is rewritten: most of the prompt is new although it is as long as before. A
session that would outgrow its window is compacted. Shared with the turn before are whole 64-token
blocks of its prompt, as the sessions tell it.

Drawn independently: turns of each other, growth of the answer before it, gaps of lengths,
sub-agents of the session that started them. Real sessions differ more from each other than that,
and what sub-agents share with each other is not told.
"""

from collections.abc import Iterator

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.workload.claude_code_params import (
    CLAUDE_CODE,
    ClaudeCodeParams,
    Rewriting,
    SessionKind,
)
from conserve_sglang.workload.plan import ConversationPlan, TurnPlan
from conserve_sglang.workload.quantiles import Quantiles
from conserve_sglang.workload.rng import Rng

BLOCK_TOKENS = 64
EARLY_TURNS = 5  # after the first


def claude_code_conversations(
    count: int, rng: Rng, params: ClaudeCodeParams = CLAUDE_CODE
) -> Iterator[ConversationPlan]:
    """`count` conversations, all arriving at 0; see `with_arrivals`. Gaps are in seconds."""
    for number in range(count):
        if rng.random() < params.sub_agent_share:
            kind, user_share, name = params.sub_agent, 0.0, "sub-agent"
        else:
            is_resumed = rng.random() < params.resumed_share
            kind = params.resumed if is_resumed else params.fresh
            user_share, name = params.user_gap_share, "session"
        yield ConversationPlan(
            conversation_id=ConversationId(f"claude-code-{name}-{number:07}"),
            turns=tuple(_turns(kind, user_share, params, rng)),
        )


def _turns(
    kind: SessionKind, user_share: float, params: ClaudeCodeParams, rng: Rng
) -> Iterator[TurnPlan]:
    rules = params.rewriting
    turn = TurnPlan(input_tokens=kind.first_input.draw(rng), output_tokens=kind.output.draw(rng))
    limit = rules.compacted_at.draw(rng)
    if turn.input_tokens > limit or rng.random() < kind.large_window_share:
        limit = max(turn.input_tokens, rules.large_compacted_at.draw(rng))
    yield turn
    for index in range(kind.num_turns.draw(rng) - 1):
        growth = kind.early_growth if index < EARLY_TURNS else kind.growth
        prompt, shared = _next_prompt(turn.input_tokens, growth, rules, limit, rng)
        gaps = params.user_gap_s if rng.random() < user_share else kind.tool_gap_s
        turn = TurnPlan(
            input_tokens=prompt,
            output_tokens=kind.output.draw(rng),
            shared_tokens=shared,
            gap_s=gaps.draw_value(rng),
        )
        yield turn


def _next_prompt(
    before: int, growth: Quantiles, rules: Rewriting, limit: int, rng: Rng
) -> tuple[int, int]:
    """The prompt after one of `before` tokens, and how many of its tokens are old."""
    fate = rng.random()
    if fate < rules.share:
        prompt = max(1, round(before * rules.length.draw_value(rng)))
        if prompt <= limit:
            return prompt, _blocks(min(before * rules.kept.draw_value(rng), prompt - 1))
    else:
        prompt = max(1, before + round(growth.draw_value(rng)))
        if prompt <= limit and fate >= rules.share + rules.early_share:
            return prompt, _blocks(min(before, prompt - 1))
    prompt = rules.compacted_to.draw(rng)
    return prompt, _blocks(min(rules.compacted_kept.draw(rng), before, prompt - 1))


def _blocks(tokens: float) -> int:
    return int(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
