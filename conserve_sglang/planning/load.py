"""The load to plan for: conversations, how fast they come, and samples of them to play."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.stats import percentile
from conserve_sglang.workload import ConversationPlan, at_rate, poisson_arrivals, with_arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`conversations` stand for what comes, `rate_per_s` of them on average. With `has_own_times`
    they come in their own order and rhythm, stretched to the rate; else at random (Poisson)."""

    conversations: tuple[ConversationPlan, ...]
    rate_per_s: float
    has_own_times: bool
    seed: int
    source: str

    @property
    def turns_per_conversation(self) -> float:
        """The mean."""
        return sum(len(plan.turns) for plan in self.conversations) / len(self.conversations)

    @property
    def tokens_per_conversation(self) -> float:
        """Mean of input and output of all turns, history counted each time."""
        turns = (turn for plan in self.conversations for turn in plan.turns)
        tokens = sum(turn.input_tokens + turn.output_tokens for turn in turns)
        return tokens / len(self.conversations)

    @property
    def has_gaps(self) -> bool:
        """Whether anybody waits for a tool."""
        return any(turn.gap_s for plan in self.conversations for turn in plan.turns[1:])

    def gaps_s(self, level: float) -> float:
        """The quantile `level` of a conversation's tool gaps, summed up. No fleet's TTFET or E2E at
        that level is shorter."""
        sums = sorted(sum(turn.gap_s for turn in plan.turns[1:]) for plan in self.conversations)
        return percentile(sums, level * 100)

    def sample(self, count: int, rate_per_s: float, seed: int) -> Iterator[ConversationPlan]:
        """`count` conversations in order of arrival. Fewer than there are: the first ones, which
        keep their rhythm; more: over and over, at random times."""
        if self.has_own_times and count <= len(self.conversations):
            yield from at_rate(self.conversations[:count], rate_per_s)
            return
        named = (
            replace(plan, conversation_id=ConversationId(f"{number:06}"))
            for number, plan in enumerate(islice(cycle(self.conversations), count))
        )
        yield from with_arrivals(named, poisson_arrivals(rate_per_s, random.Random(seed)))
