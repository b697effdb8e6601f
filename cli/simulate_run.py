"""From options to a simulation's summary."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import PolicyChoice, TierMap
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    Deployment,
    PerfModel,
    Simulation,
    Summary,
    Tally,
    deployment_of,
    unit_costs_of,
)
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.traces import BadLine, read_trace
from conserve_sglang.workload import (
    ConversationPlan,
    cut_to_window,
    first_turns,
    mini_swe_conversations,
    poisson_arrivals,
    with_arrivals,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to play, as the options say."""

    trace: Path | None
    synthetic: int | None
    rate_per_s: float | None
    seed: int
    max_turns: int | None
    window_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and what it was a run of.

    `perf` is what conversations run alone are computed with, `unit_costs` each tier's.
    `num_left_out`: conversations whose turn 1 is larger than the window.
    """

    tier_map: str
    policy: str
    seed: int
    rate_per_s: float | None
    perf: PerfModel
    unit_costs: dict[str, PerfModel]
    bad_lines: tuple[BadLine, ...]
    num_left_out: int
    num_kv_transfers: int
    summary: Summary


def run(path: Path, workload: Workload, policy: str | None, kv_capacity_tokens: int) -> Result:
    """Simulate. Raises ConfigError for options that do not fit together."""
    tier_map = load_tier_map(path)
    choice = _policy(tier_map, policy)
    perf = A40_QWEN3_0_6B
    deployment = deployment_of(tier_map, perf, choice, kv_capacity_tokens)
    rng = random.Random(workload.seed)
    given, bad_lines = _conversations(workload, rng)
    plans = _cut(given, workload)
    summary, num_kv_transfers = _play(deployment, perf, _timed(plans, workload, rng))
    return Result(
        tier_map=str(path),
        policy=choice.name,
        seed=workload.seed,
        rate_per_s=workload.rate_per_s,
        perf=perf,
        unit_costs={tier.name: unit_costs_of(tier, perf) for tier in tier_map.tiers},
        bad_lines=bad_lines,
        num_left_out=len(given) - len(plans),
        num_kv_transfers=num_kv_transfers,
        summary=summary,
    )


def _policy(tier_map: TierMap, name: str | None) -> PolicyChoice:
    if name is None or name == tier_map.policy.name:
        return tier_map.policy
    return PolicyChoice(name=name, params={})


def _conversations(
    workload: Workload, rng: random.Random
) -> tuple[Sequence[ConversationPlan], tuple[BadLine, ...]]:
    if (workload.trace is None) == (workload.synthetic is None):
        raise ConfigError("give either --trace FILE or --synthetic N")
    if workload.synthetic is not None:
        return list(mini_swe_conversations(workload.synthetic, rng)), ()
    assert workload.trace is not None
    trace = read_trace(workload.trace)
    if not trace.conversations:
        raise ConfigError(f"{workload.trace}: no line of it can be used")
    return trace.conversations, trace.bad_lines


def _cut(given: Iterable[ConversationPlan], workload: Workload) -> Sequence[ConversationPlan]:
    if workload.window_tokens is not None:
        given = cut_to_window(given, workload.window_tokens)
    if workload.max_turns is not None:
        given = first_turns(given, workload.max_turns)
    return list(given)


def _timed(
    plans: Sequence[ConversationPlan], workload: Workload, rng: random.Random
) -> Iterable[ConversationPlan]:
    if workload.rate_per_s is not None:
        if workload.rate_per_s <= 0:
            raise ConfigError("--rate must be positive")
        return with_arrivals(plans, poisson_arrivals(workload.rate_per_s, rng))
    if len(plans) > 1 and len({plan.arrived_at_s for plan in plans}) == 1:
        raise ConfigError("all these conversations arrive at once; say how fast with --rate")
    if plans and plans[0].arrived_at_s < 0:
        raise ConfigError("conversations arrive before 0; say how fast with --rate")
    return plans


def _play(
    deployment: Deployment, perf: PerfModel, plans: Iterable[ConversationPlan]
) -> tuple[Summary, int]:
    tally = Tally(perf)
    simulation = Simulation(deployment, tally)
    simulation.run(plans)
    return tally.summary(), simulation.links.num_transfers
