"""From options to a simulation's summary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import FlagValue, PolicyChoice, TierMap
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.power_log import PowerLog
from conserve_sglang.policy import POLICIES
from conserve_sglang.profiles import Profile, open_profile
from conserve_sglang.sim import (
    Beyond,
    ConversationRecord,
    Deployment,
    PerfModel,
    Simulation,
    Summary,
    Tally,
    alone_tier,
    beyond_points,
    deployment_of,
    perf_model_of,
    profiles_of,
)
from conserve_sglang.sim.budget import BudgetSummary, SimulatedBudget
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.traces import BadLine, Source, draw
from conserve_sglang.workload import ConversationPlan

from .simulate_watch import Latencies, progress

NUM_BINS = 60
"""Of the power over the time in which conversations arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and what it was a run of: `policy` with its `params`, called `label` beside others.

    `perf` is what conversations run alone are computed with, `profiles` each tier's; `notes` says
    for which tier another one's was taken, and what else the figures are to be read with.
    `latencies` and `watts` (of each tier over time, if asked for) are what figures are drawn of.
    `num_left_out`: conversations whose turn 1 is larger than the window. `scaling` says how their
    lengths were scaled to it; empty if they were not. `beyond`: what was extrapolated.
    """

    tier_map: str
    policy: str
    params: Mapping[str, FlagValue]
    label: str
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
    latencies: Latencies
    watts: Mapping[str, Sequence[tuple[float, float]]]
    beyond: tuple[Beyond, ...] = ()
    budget: BudgetSummary | None = None


def run(  # noqa: PLR0913 - each one is an option of the command
    path: Path,
    source: Source,
    policy: str | None,
    kv_capacity_tokens: int | None,
    wanted: Sequence[str] = (),
    *,
    wants_watts: bool = False,
    keeps_budget: bool = False,
) -> Result:
    """Simulate, with the wanted profiles where they fit. Raises ConfigError for options that do
    not fit together."""
    tier_map = load_tier_map(path)
    if keeps_budget and not tier_map.has_budget:
        raise ConfigError(f"{path}: has no power_budget_w or energy_budget_j_per_output_token")
    choice = policy_of(tier_map, policy)
    label = policy or choice.name
    profiles, notes = profiles_of(tier_map, [open_profile(name) for name in wanted])
    perf = perf_model_of(profiles[alone_tier(tier_map)])
    deployment = deployment_of(tier_map, profiles, choice, kv_capacity_tokens)
    drawn = draw(source)
    budget = SimulatedBudget(tier_map, profiles) if keeps_budget else None
    played = _play(deployment, perf, drawn.conversations, label, wants_watts, budget)
    return Result(
        tier_map=str(path),
        policy=choice.name,
        params=choice.params,
        label=label,
        seed=source.seed,
        rate_per_s=source.rate_per_s,
        perf=perf,
        profiles=profiles,
        notes=(*notes, *_notes_of(tier_map, choice, drawn.conversations)),
        bad_lines=drawn.bad_lines,
        num_left_out=drawn.num_left_out,
        scaling=drawn.scaling,
        num_kv_transfers=played.num_kv_transfers,
        summary=played.summary,
        latencies=played.latencies,
        watts=played.watts,
        beyond=played.beyond,
        budget=None if budget is None else budget.summary(),
    )


def policy_of(tier_map: TierMap, wanted: str | None) -> PolicyChoice:
    """The tier map's policy, or the one that is wanted as NAME or NAME:param=value,param=value;
    the tier map's own keeps those of its parameters that are not given."""
    if wanted is None:
        return tier_map.policy
    name, _, given = wanted.partition(":")
    params = dict(tier_map.policy.params) if name == tier_map.policy.name else {}
    for part in given.split(",") if given else ():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"--policy {wanted}: {part!r} is not param=value")
        params[key.strip()] = _value(value.strip())
    return PolicyChoice(name=name, params=params)


def _value(text: str) -> FlagValue:
    """A number, true, false or null; else the text itself."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if value is None or isinstance(value, int | float) else text


def _notes_of(
    tier_map: TierMap, choice: PolicyChoice, plans: Sequence[ConversationPlan]
) -> Iterator[str]:
    """What a reader of the figures has to know of the policy and of the conversations."""
    needs = POLICIES[choice.name].only_simulated
    if needs is not None:
        yield f"{choice.name} is simulated only: on real servers it would need {needs}"
    roles = {tier.role for tier in tier_map.tiers}
    if choice.name == "colocated" and roles == {Role.PREFILL, Role.DECODE}:
        yield (
            "colocated has no use for prefill tiers: here they idle, and their watts count; for"
            " collocation on all GPUs give a tier map of mixed tiers"
        )
    gaps_s = sum(turn.gap_s for plan in plans for turn in plan.turns[1:])
    if gaps_s:
        yield (
            f"TTFET and E2E, and what they are divided by, hold the tool gaps:"
            f" {gaps_s / len(plans):,.1f} s of a conversation in the mean"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Played:
    summary: Summary
    num_kv_transfers: int
    latencies: Latencies
    watts: Mapping[str, Sequence[tuple[float, float]]]
    beyond: tuple[Beyond, ...]


def _play(
    deployment: Deployment,
    perf: PerfModel,
    plans: Sequence[ConversationPlan],
    name: str,
    wants_watts: bool,
    budget: SimulatedBudget | None,
) -> _Played:
    tally, latencies = Tally(perf), Latencies()
    with progress(name, len(plans)) as told:

        def sink(record: ConversationRecord) -> None:
            tally(record)
            latencies(record)
            told(record)

        simulation = Simulation(deployment, sink)
        if budget is not None:
            budget.attach(simulation)
        bin_s = (plans[-1].arrived_at_s - plans[0].arrived_at_s) / NUM_BINS if plans else 0.0
        log = PowerLog(simulation, bin_s if wants_watts else 0.0)
        simulation.run(plans)
    return _Played(
        summary=tally.summary(simulation),
        num_kv_transfers=simulation.links.num_transfers,
        latencies=latencies,
        watts=log.watts,
        beyond=beyond_points(simulation.workers.values()),
    )
