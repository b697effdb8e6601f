"""From options to a simulation's summary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import FlagValue, PolicyChoice, Slo, Tier, TierMap
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
from conserve_sglang.tiermap.load import policy_problems
from conserve_sglang.traces import BadLine, Source, draw
from conserve_sglang.workload import ConversationPlan

from .simulate_watch import Latencies, progress
from .slo_option import parse_slo

MAPS_OWN = "map"
"""Of --slo: judge by the tier map's targets."""
NUM_BINS = 60
"""Of the power over the time in which conversations arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and what it was a run of: `policy` with its `params`, called `label` beside others.

    `perf` is what conversations run alone are computed with, `alone_on` says on which GPU that is;
    `profiles` are each tier's; `notes` says for which tier another one's was taken, and what else
    the figures are to be read with. `slo`: the targets they are judged by, and `attained` the share
    of conversations that keep all of them; None for the paper's. `latencies` and `watts` (of each
    tier over time, if asked for) are what figures are drawn of. `num_left_out` of `num_given`
    conversations have a turn 1 larger than the window. `scaling` says how their lengths were scaled
    to it; empty if they were not. `beyond`: what was extrapolated.
    """

    tier_map: str
    policy: str
    params: Mapping[str, FlagValue]
    label: str
    seed: int
    rate_per_s: float | None
    perf: PerfModel
    alone_on: str
    slo: Slo | None
    judged_by: str
    attained: float | None
    profiles: dict[str, Profile]
    notes: tuple[str, ...]
    bad_lines: tuple[BadLine, ...]
    num_left_out: int
    num_given: int
    scaling: str
    num_kv_transfers: int
    summary: Summary
    latencies: Latencies
    watts: Mapping[str, Sequence[tuple[float, float]]]
    beyond: tuple[Beyond, ...] = ()
    budget: BudgetSummary | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to play: under which policies (none: the tier map's), with which KV room and profiles;
    `figures`: the folder to draw into; `keeps_budget`: under the power controller; `slo`: judged by
    these targets."""

    policies: tuple[str, ...]
    kv_capacity_tokens: int | None
    profiles: tuple[str, ...]
    figures: Path | None
    keeps_budget: bool = False
    slo: tuple[str, ...] = ()


def run(path: Path, source: Source, policy: str | None, wanted: Wanted) -> Result:
    """Simulate one policy (None: the tier map's), with the wanted profiles where they fit. Raises
    ConfigError for options that do not fit together."""
    tier_map = load_tier_map(path, is_served=False)
    if wanted.keeps_budget and not tier_map.has_budget:
        raise ConfigError(f"{path}: has no power_budget_w or energy_budget_j_per_output_token")
    targets, judged_by = slo_of(path, tier_map, wanted.slo)
    choice = policy_of(tier_map, policy)
    label = policy or choice.name
    profiles, notes = profiles_of(tier_map, [open_profile(name) for name in wanted.profiles])
    alone = alone_tier(tier_map)
    perf = perf_model_of(profiles[alone])
    deployment = deployment_of(tier_map, profiles, choice, wanted.kv_capacity_tokens)
    drawn = draw(source)
    budget = SimulatedBudget(tier_map, profiles) if wanted.keeps_budget else None
    tally, draws = Tally(perf, targets), wanted.figures is not None
    played = _play(deployment, tally, drawn.conversations, label, draws, budget)
    return Result(
        tier_map=str(path),
        policy=choice.name,
        params=choice.params,
        label=label,
        seed=source.seed,
        rate_per_s=source.rate_per_s,
        perf=perf,
        alone_on=next(_alone_on(tier, perf) for tier in tier_map.tiers if tier.name == alone),
        slo=targets,
        judged_by=judged_by,
        attained=tally.attained,
        profiles=profiles,
        notes=(*notes, *drawn.notes, *_notes_of(tier_map, choice, drawn.conversations)),
        bad_lines=drawn.bad_lines,
        num_left_out=drawn.num_left_out,
        num_given=drawn.num_left_out + len(drawn.conversations),
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
    choice = PolicyChoice(name=name, params=params)
    problems = [
        problem.removeprefix("policy.name: ").removeprefix("policy.params").lstrip(".: ")
        for problem in policy_problems(choice)
    ]
    if problems:
        raise ConfigError(f"--policy {wanted}: {'; '.join(problems)}")
    return choice


def slo_of(path: Path, tier_map: TierMap, given: Sequence[str]) -> tuple[Slo | None, str]:
    """The targets to judge by, and whose they are; None for the paper's. Raises ConfigError."""
    if not given:
        return None, "5 times the mean run alone (the paper's)"
    if list(given) == [MAPS_OWN]:
        if tier_map.slo == Slo():
            raise ConfigError(f"--slo {MAPS_OWN}: {path} has no slo; give ttfet=SECONDS")
        return tier_map.slo, "the tier map's slo"
    found = parse_slo(given)
    slo = Slo(ttfet_s=found.get("ttfet"), last_turn_tbt_s=found.get("tbt"), e2e_s=found.get("e2e"))
    return slo, "--slo"


def _alone_on(tier: Tier, perf: PerfModel) -> str:
    gpus = (
        "the CPU" if tier.is_cpu else f"one {tier.gpu}" if tier.tp == 1 else f"{tier.tp} {tier.gpu}"
    )
    return f"{gpus} of tier {tier.name} (profile {perf.name})"


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
    tally: Tally,
    plans: Sequence[ConversationPlan],
    name: str,
    wants_watts: bool,
    budget: SimulatedBudget | None,
) -> _Played:
    latencies = Latencies()
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
