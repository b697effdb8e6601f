"""The shape of a workload: what decides whether pinning conversations pays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conserve_sglang.core.stats import percentile
from conserve_sglang.workload.plan import ConversationPlan

LARGE_APPEND_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Percentiles of one quantity."""

    p5: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Counts, lengths and gaps of a workload. Spreads are None when nothing is counted.

    `first_turn_share` is the share of all uncached prefill tokens that turn 1 holds, if every
    conversation's context stays resident. `large_append_share` is the share of later turns that
    append 2,048 tokens or more, `large_append_work` their share of later prefill.
    """

    num_conversations: int
    num_turns: int
    turns_per_conversation: Spread | None
    first_input_tokens: Spread | None
    input_tokens: Spread | None
    output_tokens: Spread | None
    append_tokens: Spread | None
    gap_s: Spread | None
    first_turn_share: float
    large_append_share: float
    large_append_work: float
    gap_over_60_s_share: float
    gap_over_300_s_share: float
    span_s: float


def shape_of(conversations: Iterable[ConversationPlan]) -> Shape:
    """Measure a workload."""
    plans = list(conversations)
    firsts = [plan.turns[0] for plan in plans]
    later = [turn for plan in plans for turn in plan.turns[1:]]
    first_work = sum(turn.append_tokens for turn in firsts)
    appends = [turn.append_tokens for turn in later]
    large = [tokens for tokens in appends if tokens >= LARGE_APPEND_TOKENS]
    gaps = [turn.gap_s for turn in later]
    starts = [plan.arrived_at_s for plan in plans]
    return Shape(
        num_conversations=len(plans),
        num_turns=len(firsts) + len(later),
        turns_per_conversation=_spread([len(plan.turns) for plan in plans]),
        first_input_tokens=_spread([turn.input_tokens for turn in firsts]),
        input_tokens=_spread([turn.input_tokens for turn in firsts + later]),
        output_tokens=_spread([turn.output_tokens for turn in firsts + later]),
        append_tokens=_spread(appends),
        gap_s=_spread(gaps),
        first_turn_share=_share(first_work, first_work + sum(appends)),
        large_append_share=_share(len(large), len(appends)),
        large_append_work=_share(sum(large), sum(appends)),
        gap_over_60_s_share=_share(sum(gap > 60 for gap in gaps), len(gaps)),
        gap_over_300_s_share=_share(sum(gap > 300 for gap in gaps), len(gaps)),
        span_s=max(starts, default=0.0) - min(starts, default=0.0),
    )


def shares_nothing(conversations: Iterable[ConversationPlan]) -> bool:
    """Whether there are later turns, and none of them has anything of its context before."""
    later = [turn for plan in conversations for turn in plan.turns[1:]]
    return bool(later) and not any(turn.shared_tokens for turn in later)


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    ordered = sorted(values)
    return Spread(
        p5=percentile(ordered, 5),
        p50=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
