"""A workload whose contexts are larger than a model's window, made to fit, and told how."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from conserve_sglang.core.stats import percentile
from conserve_sglang.workload.plan import ConversationPlan, TurnPlan
from conserve_sglang.workload.scaling import cut_to_window


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScaling:
    """A workload scaled to `window_tokens`: every length times `factor`, gaps and times kept.

    `fitting` is the share of conversations that the factor lets fit whole. Of the others,
    `num_cut` end before the turn that would outgrow the window, and `num_left_out` did not fit
    with their first turn.
    """

    conversations: tuple[ConversationPlan, ...]
    window_tokens: int
    factor: float
    fitting: float
    num_cut: int
    num_left_out: int

    def statement(self) -> str:
        """What was done, in a sentence that belongs beside every result."""
        num = len(self.conversations) + self.num_left_out
        return (
            f"all lengths times {self.factor:.4g}, so that {self.fitting:.0%} of the conversations"
            f" fit whole in {self.window_tokens:,} tokens; of {num:,}, {self.num_cut:,} were cut at"
            f" the window, {self.num_left_out:,} left out; tool gaps and arrivals as they were"
        )


def scaled_to_window(
    conversations: Iterable[ConversationPlan],
    window_tokens: int,
    *,
    fitting: float = 1.0,
    like: Iterable[ConversationPlan] | None = None,
) -> WindowScaling:
    """Scale all lengths by one factor, at most 1, so that a share `fitting` of the conversations
    never holds more than `window_tokens` of prompt and answer, and cut the rest at the window.

    One factor for all keeps what is long beside what is short: appends to contexts, prompts to
    answers, conversations to each other. Work per token does not scale so: attention over a
    context shrinks with its square, and appends fall under thresholds given in tokens.
    `like`: conversations that the factor is taken from in place of these, so that it is the same
    however many of a kind are drawn.
    Raises ValueError for a share outside (0, 1] or a window below 2 tokens.
    """
    if not 0 < fitting <= 1:
        raise ValueError("fitting must lie in (0, 1]")
    if window_tokens < 2:
        raise ValueError("window_tokens must be at least 2")
    plans = list(conversations)
    factor = _factor(plans if like is None else list(like), window_tokens, fitting)
    whole = list(scaled(plans, factor))
    kept = tuple(cut_to_window(whole, window_tokens))
    num_turns = {plan.conversation_id: len(plan.turns) for plan in whole}
    return WindowScaling(
        conversations=kept,
        window_tokens=window_tokens,
        factor=factor,
        fitting=fitting,
        num_cut=sum(len(plan.turns) < num_turns[plan.conversation_id] for plan in kept),
        num_left_out=len(plans) - len(kept),
    )


def scaled(conversations: Iterable[ConversationPlan], factor: float) -> Iterator[ConversationPlan]:
    """Every length times `factor`, rounded; no turn loses its last token of append or answer.

    Raises ValueError unless `factor` is positive.
    """
    if factor <= 0:
        raise ValueError("factor must be positive")
    for conversation in conversations:
        yield replace(conversation, turns=tuple(_scaled_turns(conversation.turns, factor)))


def longest_context_tokens(conversation: ConversationPlan) -> int:
    """The most tokens of prompt and answer that any turn of a conversation holds."""
    return max(turn.input_tokens + turn.output_tokens for turn in conversation.turns)


def _factor(plans: Sequence[ConversationPlan], window_tokens: int, fitting: float) -> float:
    longest = sorted(longest_context_tokens(plan) for plan in plans)
    return min(1.0, window_tokens / percentile(longest, 100 * fitting)) if longest else 1.0


def _scaled_turns(turns: Sequence[TurnPlan], factor: float) -> Iterator[TurnPlan]:
    """Contexts are rounded, not appends, so that rounding never adds up over the turns."""
    before, context = 0, 0  # the context at the end of the last turn: as it was, and scaled
    for turn in turns:
        whole = turn.shared_tokens == before
        shared = context if whole else min(context, round(turn.shared_tokens * factor))
        least = shared + (1 if turn.append_tokens else 0)
        prompt = max(1, least, round(turn.input_tokens * factor))
        before = turn.input_tokens + turn.output_tokens
        context = max(prompt + 1, round(before * factor))
        yield replace(
            turn, input_tokens=prompt, output_tokens=context - prompt, shared_tokens=shared
        )
