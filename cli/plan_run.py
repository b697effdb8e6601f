"""From options to a plan, its tier map and its report."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from conserve_sglang.core.errors import PlanError
from conserve_sglang.planning import (
    Infeasible,
    Objective,
    Plan,
    Request,
    Targets,
    analysed,
    hardware_of,
    load_inventory,
    load_workload,
    make_plan,
    tiers_without,
)
from conserve_sglang.planning.checksum import with_checksum
from conserve_sglang.planning.judging import how_judged
from conserve_sglang.planning.request import KWH_A_DAY
from conserve_sglang.planning.tier_map import check_wording, checked, tier_map_text
from conserve_sglang.profiles import Profile, load_profile, open_profile, shipped_profiles
from conserve_sglang.report.plan_page import plan_page
from conserve_sglang.report.refusal_page import refusal_page

from .plan_files import MAP_MARK, check_outputs, was_there, write
from .plan_progress import progress
from .slo_option import parse_slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the options say."""

    inventory: Path
    workload: Path
    profiles: tuple[str, ...]
    rate_per_s: float | None
    slo: tuple[str, ...]
    percentile: float
    power_budget_w: float | None
    energy_budget_kwh: float | None
    objective: str
    seed: int
    conversations: int
    out: Path | None
    report: Path | None
    is_quick: bool
    is_forced: bool = False

    @property
    def command(self) -> str:
        """The command line that says the same; files written are left out but for the tier map."""
        words = ["conserve-sglang", "plan", "--inventory", str(self.inventory)]
        words += ["--workload", str(self.workload)]
        for name in self.profiles:
            words += ["--profiles", name]
        for text in self.slo:
            words += ["--slo", text]
        options = (
            ("--rate", self.rate_per_s, None),
            ("--percentile", self.percentile, 95.0),
            ("--power-budget", self.power_budget_w, None),
            ("--energy-budget", self.energy_budget_kwh, None),
            ("--seed", self.seed, 0),
            ("--conversations", self.conversations, 2000),
        )
        for option, value, usual in options:
            if value != usual and value is not None:
                words += [option, f"{value:g}"]
        if self.objective != Objective.TOKENS_PER_JOULE.value:
            words += ["--objective", self.objective]
        if self.out is not None:
            words += ["-o", str(self.out)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A plan, or why there is none; the profiles it rests on, and the tier map's text. Where there
    is no plan `older_map` says whether an earlier plan's map is still at the place for one."""

    wishes: Wishes
    plan: Plan | Infeasible
    profiles: tuple[Profile, ...]
    left_out: tuple[str, ...]
    tier_map: str | None
    older_map: bool = False

    @property
    def is_feasible(self) -> bool:
        """Whether there is a plan."""
        return isinstance(self.plan, Plan)


def run(wishes: Wishes) -> Result:
    """Plan. Raises ConfigError for files and options that are wrong or do not fit together."""
    check_outputs(wishes.out, wishes.report, is_forced=wishes.is_forced)
    inventory = load_inventory(wishes.inventory)
    profiles = _profiles(wishes.profiles)
    request = Request(
        inventory=inventory,
        hardware=hardware_of(inventory, profiles),
        load=load_workload(wishes.workload, wishes.rate_per_s),
        targets=_targets(wishes),
        objective=_objective(wishes.objective),
        power_budget_w=_positive("--power-budget", wishes.power_budget_w),
        mean_power_w=_mean_power_w(_positive("--energy-budget", wishes.energy_budget_kwh)),
        seed=wishes.seed,
        fewest=wishes.conversations,
    )
    check_wording(request, f"{wishes.inventory} as a tier map", wishes.inventory.parent)
    with progress() as told:
        plan = make_plan(request, told)
        if isinstance(plan, Plan) and not wishes.is_quick:
            plan = analysed(plan, told)
    result = Result(
        wishes=wishes,
        plan=plan,
        profiles=tuple(one for one in profiles if _is_used(one, request)),
        left_out=tiers_without(inventory, profiles),
        tier_map=_written(wishes, plan) if isinstance(plan, Plan) else None,
        older_map=isinstance(plan, Infeasible) and was_there(wishes.out),
    )
    if wishes.report is not None:
        rest = (result.profiles, wishes.command)
        page = plan_page(plan, *rest) if isinstance(plan, Plan) else refusal_page(plan, *rest)
        write(wishes.report, with_checksum(page, "<!-- {} -->"))
    return result


def _is_used(profile: Profile, request: Request) -> bool:
    return any(one.profile == profile.name for one in request.hardware)


def _written(wishes: Wishes, plan: Plan) -> str:
    folder = wishes.out.parent if wishes.out is not None else Path()
    head = [*head_of(plan), f"    {wishes.command}"]
    text = with_checksum(tier_map_text(plan.request, plan.chosen.counts, plan.chosen.policy, head))
    checked(text, source=str(wishes.out or "the planned tier map"), folder=folder)
    if wishes.out is not None:
        write(wishes.out, text)
    return text


def head_of(plan: Plan) -> list[str]:
    """What a planned tier map says of itself; everything in it is modelled."""
    score, load = plan.chosen.score, plan.request.load
    level = plan.request.targets.level * 100
    head = [
        f"{MAP_MARK} for {score.load_per_s:g} conversations/s of {load.source}.",
        f"Modelled, from profiles: TTFET p{level:g} {score.ttfet_s:.3g} s, last-turn TBT p{level:g}"
        f" {score.tbt_s * 1e3:.3g} ms, E2E p{level:g} {score.e2e_s:.3g} s,",
        f"{score.mean_w:.0f} W on average of {plan.chosen.peak_w:.0f} W at most,"
        f" {score.tokens_per_joule:.3g} tokens/J;",
        f"judged by {how_judged(score)}.",
    ]
    notes = [plan.request.gaps_note]
    return [*head, *(f"{note}." for note in notes if note), "The command:"]


def _profiles(names: tuple[str, ...]) -> tuple[Profile, ...]:
    found: list[Profile] = []
    for name in names or shipped_profiles():
        path = Path(name)
        if path.is_dir():
            files = sorted(path.glob("*.yaml"))
            if not files:
                raise PlanError(f"{path}: no profile (*.yaml) is in this folder")
            found.extend(load_profile(file) for file in files)
        else:
            found.append(open_profile(name))
    return tuple(found)


def _targets(wishes: Wishes) -> Targets:
    given = {f"{name}_s": seconds for name, seconds in parse_slo(wishes.slo).items()}
    return Targets(level=wishes.percentile / 100, **given)


def _objective(name: str) -> Objective:
    try:
        return Objective(name)
    except ValueError as error:
        known = ", ".join(one.value for one in Objective)
        raise PlanError(f"--objective {name}: there is none of that name; use {known}") from error


def _positive(option: str, value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise PlanError(f"{option} {value:g}: give a number above 0, or leave it out")
    return value


def _mean_power_w(kwh_a_day: float | None) -> float | None:
    return None if kwh_a_day is None else kwh_a_day / KWH_A_DAY
