"""From options to a simulation's summary."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
from conserve_sglang.traces import BadLine, Source, draw
from conserve_sglang.workload import ConversationPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and what it was a run of.

    `perf` is what conversations run alone are computed with, `unit_costs` each tier's.
    `num_left_out`: conversations whose turn 1 is larger than the window. `scaling` says how their
    lengths were scaled to it; empty if they were not.
    """

    tier_map: str
    policy: str
    seed: int
    rate_per_s: float | None
    perf: PerfModel
    unit_costs: dict[str, PerfModel]
    bad_lines: tuple[BadLine, ...]
    num_left_out: int
    scaling: str
    num_kv_transfers: int
    summary: Summary


def run(path: Path, source: Source, policy: str | None, kv_capacity_tokens: int) -> Result:
    """Simulate. Raises ConfigError for options that do not fit together."""
    tier_map = load_tier_map(path)
    choice = _policy(tier_map, policy)
    perf = A40_QWEN3_0_6B
    deployment = deployment_of(tier_map, perf, choice, kv_capacity_tokens)
    drawn = draw(source)
    summary, num_kv_transfers = _play(deployment, perf, drawn.conversations)
    return Result(
        tier_map=str(path),
        policy=choice.name,
        seed=source.seed,
        rate_per_s=source.rate_per_s,
        perf=perf,
        unit_costs={tier.name: unit_costs_of(tier, perf) for tier in tier_map.tiers},
        bad_lines=drawn.bad_lines,
        num_left_out=drawn.num_left_out,
        scaling=drawn.scaling,
        num_kv_transfers=num_kv_transfers,
        summary=summary,
    )


def _policy(tier_map: TierMap, name: str | None) -> PolicyChoice:
    if name is None or name == tier_map.policy.name:
        return tier_map.policy
    return PolicyChoice(name=name, params={})


def _play(
    deployment: Deployment, perf: PerfModel, plans: Iterable[ConversationPlan]
) -> tuple[Summary, int]:
    tally = Tally(perf)
    simulation = Simulation(deployment, tally)
    simulation.run(plans)
    return tally.summary(), simulation.links.num_transfers
