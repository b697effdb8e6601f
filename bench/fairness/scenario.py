"""Who asks for what: tenant B's steady conversations, and tenant A's bursts beside them.

Lengths are those of the paper's workload (`workload.mini_swe`), times those of the paper's A40
unit measurements. Both tenants weigh the same and have the same kind of conversations.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.core.stats import percentile
from conserve_sglang.workload import ConversationPlan, mini_swe_conversations, poisson_arrivals
from conserve_sglang.workload.mini_swe import MINI_SWE

STEADY, BURSTY = TenantId("b"), TenantId("a")
MOST_OUTPUT_TOKENS = 400  # the trace's longest answers take minutes and would hide every wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Seconds are an A40's. Of `num_prefillers` each prefills about 1.6 first turns a second."""

    num_prefillers: int = 1
    num_decoders: int = 3
    kv_capacity_tokens: int = 308_448
    duration_s: float = 300.0
    steady_per_s: float = 0.3
    burst_size: int = 60
    burst_every_s: float = 60.0
    tool_gap_s: float = 1.0

    def plans(self, *, has_burst: bool) -> list[ConversationPlan]:
        """All conversations in order of arrival; B's are the same with and without the burst."""
        plans = list(self._steady())
        if has_burst:
            plans += self._bursts()
        return sorted(plans, key=lambda plan: plan.arrived_at_s)

    def _steady(self) -> Iterator[ConversationPlan]:
        rng = random.Random(20260601839)
        times = poisson_arrivals(self.steady_per_s, rng)
        for number, plan in enumerate(self._conversations(rng)):
            arrived_at_s = next(times)
            if arrived_at_s > self.duration_s:
                return
            yield _of(STEADY, number, plan, arrived_at_s)

    def _bursts(self) -> Iterator[ConversationPlan]:
        conversations = self._conversations(random.Random(1839))
        number, at_s = 0, 0.0
        while at_s < self.duration_s:
            for _ in range(self.burst_size):
                yield _of(BURSTY, number, next(conversations), at_s)
                number += 1
            at_s += self.burst_every_s

    def _conversations(self, rng: random.Random) -> Iterator[ConversationPlan]:
        params = replace(MINI_SWE, gap_s=self.tool_gap_s)
        for plan in mini_swe_conversations(100_000, rng, params):
            if all(turn.output_tokens <= MOST_OUTPUT_TOKENS for turn in plan.turns):
                yield plan


def _of(tenant: TenantId, number: int, plan: ConversationPlan, at_s: float) -> ConversationPlan:
    name = ConversationId(f"{tenant}-{number}")
    return replace(plan, conversation_id=name, tenant=tenant, arrived_at_s=at_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One conversation as its client saw it. Seconds are an A40's."""

    tenant: TenantId
    ttfet_s: float
    first_ttft_s: float
    is_answered: bool = True


def summary(played: list[Played], tenant: TenantId) -> dict[str, float]:
    """A tenant's latencies and how many of its conversations were answered."""
    own = [each for each in played if each.tenant == tenant]
    answered = [each for each in own if each.is_answered]
    row: dict[str, float] = {"num_conversations": len(own), "num_answered": len(answered)}
    for name in ("ttfet_s", "first_ttft_s"):
        values = sorted(getattr(each, name) for each in answered)
        for level in (50, 95):
            if values:
                row[f"{name}_p{level}"] = round(percentile(values, level), 3)
    return row
