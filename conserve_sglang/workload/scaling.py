"""Changes to a given workload: its load, its number of turns, its lengths."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from conserve_sglang.workload.plan import ConversationPlan


def at_rate(
    conversations: Sequence[ConversationPlan], rate_per_s: float
) -> tuple[ConversationPlan, ...]:
    """Stretch a trace's own arrival times so that conversations come at `rate_per_s` on average.

    Tool gaps stay as they are. Raises ValueError when all arrive at once.
    """
    if rate_per_s <= 0:
        raise ValueError("rate_per_s must be positive")
    start = min((c.arrived_at_s for c in conversations), default=0.0)
    span = max((c.arrived_at_s for c in conversations), default=0.0) - start
    if span <= 0:
        raise ValueError("these conversations have no spread of arrival times to stretch")
    factor = (len(conversations) - 1) / (rate_per_s * span)
    return tuple(replace(c, arrived_at_s=(c.arrived_at_s - start) * factor) for c in conversations)


def at_load(conversations: Iterable[ConversationPlan], factor: float) -> Iterator[ConversationPlan]:
    """`factor` times as many conversations a second: their arrival times divided by it. Tool gaps
    stay as they are."""
    if factor <= 0:
        raise ValueError("factor must be positive")
    for conversation in conversations:
        yield replace(conversation, arrived_at_s=conversation.arrived_at_s / factor)


def with_gaps_scaled(
    conversations: Iterable[ConversationPlan], factor: float
) -> Iterator[ConversationPlan]:
    """All tool gaps times `factor`; 0 for none."""
    if factor < 0:
        raise ValueError("factor must not be negative")
    for conversation in conversations:
        turns = tuple(replace(turn, gap_s=turn.gap_s * factor) for turn in conversation.turns)
        yield replace(conversation, turns=turns)


def first_turns(
    conversations: Iterable[ConversationPlan], max_turns: int
) -> Iterator[ConversationPlan]:
    """Each conversation cut after `max_turns` turns."""
    if max_turns < 1:
        raise ValueError("max_turns must be at least 1")
    for conversation in conversations:
        yield replace(conversation, turns=conversation.turns[:max_turns])


def cut_to_window(
    conversations: Iterable[ConversationPlan], max_tokens: int
) -> Iterator[ConversationPlan]:
    """Each conversation up to its last turn whose prompt and answer fit in `max_tokens`; those
    whose first turn does not fit are left out."""
    for conversation in conversations:
        kept = 0
        for turn in conversation.turns:
            if turn.input_tokens + turn.output_tokens > max_tokens:
                break
            kept += 1
        if kept:
            yield replace(conversation, turns=conversation.turns[:kept])
