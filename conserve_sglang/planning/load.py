"""The load to plan for: conversations, how fast they come, and samples of them to play."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count as counted
from itertools import islice

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

    def sample(
        self, count: int, rate_per_s: float, seed: int, *, is_even: bool = False
    ) -> Iterator[ConversationPlan]:
        """`count` conversations in order of arrival, over and over where there are fewer.

        With times of their own: as many that follow each other, from a place that the seed chooses
        (after the last comes the first), in their rhythm. Else, and with `is_even`, in an order
        that the seed chooses, at random (Poisson) or evenly spaced times.
        """
        if self.has_own_times and not is_even:
            yield from at_rate(tuple(self._following(count, seed)), rate_per_s)
            return
        shuffled = islice(self._shuffled(seed), count)
        even = (number / rate_per_s for number in counted())
        random_times = poisson_arrivals(rate_per_s, random.Random(seed))
        yield from with_arrivals(_named(shuffled), even if is_even else random_times)

    def _shuffled(self, seed: int) -> Iterator[ConversationPlan]:
        """All of them in one order after the other, endless."""
        rng = random.Random(f"order {seed}")
        while True:
            yield from rng.sample(self.conversations, len(self.conversations))

    def _following(self, count: int, seed: int) -> Iterator[ConversationPlan]:
        plans = self.conversations
        first_s, last_s = plans[0].arrived_at_s, plans[-1].arrived_at_s
        lap_s = (last_s - first_s) * len(plans) / (len(plans) - 1)
        start = random.Random(seed).randrange(len(plans))
        chosen = (divmod(start + number, len(plans)) for number in range(count))
        yield from _named(
            replace(plans[index], arrived_at_s=plans[index].arrived_at_s + lap * lap_s)
            for lap, index in chosen
        )


def _named(plans: Iterator[ConversationPlan]) -> Iterator[ConversationPlan]:
    for number, plan in enumerate(plans):
        yield replace(plan, conversation_id=ConversationId(f"{number:06}"))
