"""From options to a simulation's summary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.core.tier import PolicyChoice, TierMap
from conserve_sglang.profiles import Profile, open_profile
from conserve_sglang.sim import (
    Deployment,
    PerfModel,
    Simulation,
    Summary,
    Tally,
    alone_tier,
    deployment_of,
    perf_model_of,
    profiles_of,
)
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.traces import BadLine, Source, draw
from conserve_sglang.workload import ConversationPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and what it was a run of.

    `perf` is what conversations run alone are computed with, `profiles` each tier's; `notes` says
    for which tier another one's was taken.
    `num_left_out`: conversations whose turn 1 is larger than the window. `scaling` says how their
    lengths were scaled to it; empty if they were not.
    """

    tier_map: str
    policy: str
    seed: int
    rate_per_s: float | None
    perf: PerfModel
    profiles: dict[str, Profile]
    notes: tuple[str, ...]
    bad_lines: tuple[BadLine, ...]
    num_left_out: int
    scaling: str
    num_kv_transfers: int
    summary: Summary


def run(
    path: Path,
    source: Source,
    policy: str | None,
    kv_capacity_tokens: int | None,
    wanted: Sequence[str] = (),
) -> Result:
    """Simulate, with the wanted profiles where they fit. Raises ConfigError for options that do
    not fit together."""
    tier_map = load_tier_map(path)
    choice = _policy(tier_map, policy)
    profiles, notes = profiles_of(tier_map, [open_profile(name) for name in wanted])
    perf = perf_model_of(profiles[alone_tier(tier_map)])
    deployment = deployment_of(tier_map, profiles, choice, kv_capacity_tokens)
    drawn = draw(source)
    summary, num_kv_transfers = _play(deployment, perf, drawn.conversations)
    return Result(
        tier_map=str(path),
        policy=choice.name,
        seed=source.seed,
        rate_per_s=source.rate_per_s,
        perf=perf,
        profiles=profiles,
        notes=notes,
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
    return tally.summary(simulation), simulation.links.num_transfers
