"""A plan as text and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from conserve_sglang.planning import Infeasible, Objective, Option, Plan, Request, Score
from conserve_sglang.planning.plan import is_within
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.remedy import MEANING, Change, Remedy
from conserve_sglang.profiles import Profile

from .beyond_view import as_beyond, beyond_lines
from .plan_run import Result

CHECK_CAPS = "look at its Min Power Limit (`nvidia-smi -q -d POWER`)"


def show(result: Result, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        typer.echo(json.dumps(as_document(result), indent=2, allow_nan=False))
    elif isinstance(result.plan, Plan):
        _print_plan(result, result.plan)
    else:
        _print_infeasible(result, result.plan)


def as_document(result: Result) -> dict[str, Any]:
    """Plain JSON values; a latency that never ends is null."""
    plan = result.plan
    document: dict[str, Any] = {
        "modelled": True,
        "feasible": result.is_feasible,
        "command": result.wishes.command,
        **_request_document(plan.request),
        "profiles": [_profile_document(profile) for profile in result.profiles],
        "tiers_without_profile": list(result.left_out),
    }
    if isinstance(plan, Infeasible):
        return {**document, **_infeasible_document(plan)}
    return {**document, **_plan_document(plan), "tier_map": result.tier_map}


def _request_document(request: Request) -> dict[str, Any]:
    targets = request.targets
    return {
        "objective": request.objective.value,
        "load_per_s": request.load.rate_per_s,
        "workload": request.load.source,
        "level": targets.level,
        "ttfet_s": targets.ttfet_s,
        "last_turn_tbt_s": targets.tbt_s,
        "e2e_s": targets.e2e_s,
        "power_budget_w": request.power_budget_w,
        "mean_power_budget_w": request.mean_power_w,
    }


def _profile_document(profile: Profile) -> dict[str, Any]:
    power = profile.power_provenance
    return {
        "name": profile.name,
        "gpu": profile.gpu,
        "times": profile.provenance.kind,
        "times_error": profile.provenance.error,
        "times_source": profile.provenance.source,
        "power": None if power is None else power.kind,
        "power_error": None if power is None else power.error,
        "power_source": None if power is None else power.source,
    }


def _infeasible_document(plan: Infeasible) -> dict[str, Any]:
    return {
        "reason": plan.reason,
        "changes": [
            [_change_document(change) for change in remedy.changes] for remedy in plan.remedies
        ],
        "evidence": [_evidence_document(remedy) for remedy in plan.remedies],
        "smallest_means": MEANING,
        "nearest": None if plan.nearest is None else _option_document(plan.nearest),
    }


def _evidence_document(remedy: Remedy) -> dict[str, Any]:
    """How well a change is known to be the smallest; nulls where less was not tried."""
    proof = remedy.proof
    return {
        "text": remedy.evidence,
        "tried": None if proof is None else proof.tried.value,
        "fleets": None if proof is None else proof.num_tried,
        "step": None if proof is None else proof.step,
        "most_conversations": None if proof is None else proof.most,
    }


def _change_document(change: Change) -> dict[str, Any]:
    return {
        "text": change.text,
        "limit": change.limit.value,
        "tier": change.tier or None,
        "given": change.given,
        "needed": change.enough,
    }


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {
        "chosen": _option_document(plan.chosen),
        "margins": [
            {
                "name": margin.name,
                "limit": margin.limit,
                "value": _finite(margin.value),
                "unit": margin.unit,
                "share": _finite(margin.share),
            }
            for margin in plan.margins
        ],
        "binding": [one.text for one in plan.bindings],
        "runner_ups": [_option_document(option) for option in plan.runner_ups],
        "simulated": [_option_document(option) for option in plan.options],
        "other_seeds": [_score_document(score) for score in plan.repeats],
        "load_sweep": [_score_document(score) for score in plan.load_sweep],
        "comparisons": [
            {
                "label": one.label,
                "why_not": one.why or None,
                "option": None if one.option is None else _option_document(one.option),
            }
            for one in plan.comparisons
        ],
        "doubts": [
            {
                "label": one.label,
                "is_same_choice": one.is_same_choice,
                **_score_document(one.score),
            }
            for one in plan.doubts
        ],
        "fragile": [_option_document(option) for option in plan.fragile],
        "caps_of_unknown_range": list(plan.doubtful_caps),
        "optimality_gap": plan.gap,
        "optimality": plan.proven,
        "columns": plan.num_columns,
        "optimizer_s": plan.optimizer_s,
        "simulation_s": plan.simulation_s,
    }


def _option_document(option: Option) -> dict[str, Any]:
    return {
        "label": option.label,
        "variant": option.variant,
        "policy": {"name": option.policy.name, "params": dict(option.policy.params)},
        "workers": [
            {**_config_document(config), "count": count} for config, count in option.counts.items()
        ],
        "peak_w": option.peak_w,
        "approximate_w": option.approximate_w,
        "approximate_ttfet_s": option.approximate_ttfet_s,
        **_score_document(option.score),
    }


def _config_document(config: Config) -> dict[str, Any]:
    return {
        "tier": config.tier,
        "role": config.role.value,
        "tp": config.tp,
        "power_cap_w": config.power_cap_w,
        "sm_clock_mhz": config.sm_clock_mhz,
        "profile": config.profile,
    }


def _score_document(score: Score) -> dict[str, Any]:
    return {
        "load_per_s": score.load_per_s,
        "ttfet_s": _finite(score.ttfet_s),
        "last_turn_tbt_s": _finite(score.tbt_s),
        "e2e_s": _finite(score.e2e_s),
        "ttfet_p50_s": _finite(score.ttfet_p50_s),
        "last_turn_tbt_p50_s": _finite(score.tbt_p50_s),
        "e2e_p50_s": _finite(score.e2e_p50_s),
        "slo_attainment": score.attained,
        "answered": score.answered,
        "mean_w": score.mean_w,
        "tokens_per_joule": score.tokens_per_joule,
        "simulated_conversations": score.num_conversations,
        "simulated_scale": score.scale,
        "beyond_profile": [as_beyond(one) for one in score.beyond],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print_plan(result: Result, plan: Plan) -> None:
    console = Console()
    console.print(_options_table(plan))
    margins = ", ".join(
        f"{one.name} {_short(one.value)} of {_short(one.limit)} {one.unit} ({one.share:.0%} left)"
        for one in plan.margins
    )
    console.print(f"margins: {margins or 'no limits were set'}")
    if plan.fragile:
        console.print("! keeps the limits with these arrivals, but breaks one with another seed")
    for line in beyond_lines([plan.chosen.score.beyond]):
        console.print(line, markup=False)
    for score in plan.repeats:
        is_kept = is_within(plan.request, replace(plan.chosen, score=score))
        figures = f"{_latencies(score)}, {_short(score.tokens_per_joule)} tokens/J"
        console.print(f"another seed: {figures}{'' if is_kept else ': breaks a limit'}")
    for binding in plan.bindings:
        console.print(f"held back by {binding.text}")
    if plan.is_rescued:
        console.print("what holds it back is not known: the integer program found no choice")
    elif not plan.bindings:
        console.print("held back by the demanded load alone")
    for comparison in plan.comparisons:
        console.print(_comparison(plan, comparison.label, comparison.option, comparison.why))
    for doubt in plan.doubts:
        console.print(_doubt(doubt.label, doubt.score, doubt.is_same_choice))
    _print_footing(result, plan, console)


def _options_table(plan: Plan) -> Table:
    request, level = plan.request, f"p{plan.request.targets.level * 100:g}"
    table = Table(
        title=f"{request.objective.value} at {_load(plan)} (all of it modelled)",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("workers and policies", no_wrap=True)
    heads = (f"TTFET {level} s", f"TBT {level} ms", f"E2E {level} s")
    for column in (*heads, "mean W", "peak W", "tokens/J"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for alike in grouped([plan.chosen, *plan.runner_ups])[:5]:
        mark = "*" if plan.chosen in alike else "!" if alike[0] in plan.fragile else " "
        option, score = alike[0], alike[0].score
        policies = dict.fromkeys(f"[dim]{one.policy.name}[/dim]" for one in alike)
        rows = [*map(_many, option.counts.items()), *policies]
        table.add_row(
            "\n".join(f"{mark if not number else ' '} {row}" for number, row in enumerate(rows)),
            _short(score.ttfet_s),
            _short(score.tbt_s * 1e3),
            _short(score.e2e_s),
            f"{score.mean_w:,.0f}",
            f"{option.peak_w:,.0f}",
            _short(score.tokens_per_joule),
        )
    return table


def grouped(options: Sequence[Option]) -> list[list[Option]]:
    """Options that are the same fleet with the same figures, whatever the policy, together."""
    found: dict[object, list[Option]] = {}
    for option in options:
        score = option.score
        figures = (score.ttfet_s, score.tbt_s, score.e2e_s, score.mean_w, score.load_per_s)
        found.setdefault((*figures, *option.counts.items()), []).append(option)
    return list(found.values())


def _many(pool: tuple[Config, int]) -> str:
    return f"{pool[1]} x {name_of(pool[0])}"


def name_of(config: Config) -> str:
    """A configuration in a few words."""
    words = [config.tier, config.role.value]
    if config.tp > 1:
        words.append(f"tp {config.tp}")
    if config.power_cap_w is not None:
        words.append(f"{config.power_cap_w:g} W")
    if config.sm_clock_mhz is not None:
        words.append(f"{config.sm_clock_mhz} MHz")
    return " ".join(words)


def _load(plan: Plan) -> str:
    rate = plan.chosen.score.load_per_s
    sought = " at most" if plan.request.objective is Objective.LOAD else ""
    return f"{rate:.3g} conversations/s{sought}"


def _comparison(plan: Plan, label: str, option: Option | None, why: str) -> str:
    if why or option is None:
        return f"{label}: not feasible; {why}"
    own, other = plan.chosen.score.tokens_per_joule, option.score.tokens_per_joule
    more = f"{own / other - 1:+.1%}" if other else "more"
    return f"{label}: {_short(other)} tokens/J; the chosen map has {more}"


def _doubt(label: str, score: Score, is_same: bool | None) -> str:
    choice = {True: "the same choice", False: "another choice", None: "no choice at all"}[is_same]
    per_j = _short(score.tokens_per_joule)
    return f"{label}: {_latencies(score)}, {per_j} tokens/J; the program makes {choice}"


def _print_footing(result: Result, plan: Plan, console: Console) -> None:
    """What it rests on, and what was written."""
    for profile in result.profiles:
        power = profile.power_provenance
        mark = " (estimated)" if profile.is_estimated else ""
        said = "none" if power is None else power.kind
        console.print(
            f"profile {profile.name}{mark}: times {profile.provenance.kind}, watts {said}"
        )
    for tier in result.left_out:
        console.print(f"tier {tier} was left out: no profile of its GPU with this model")
    for gpu in plan.doubtful_caps:
        console.print(f"the least power cap that the {gpu} accepts is not known: {CHECK_CAPS}")
    console.print(
        f"{plan.num_columns} operating points, integer programs {plan.optimizer_s:.1f} s;"
        f" {len(plan.options)} fleets simulated in {plan.simulation_s:.1f} s{_at_scale(plan)}"
    )
    console.print(f"{plan.proven}; the simulator chose among these fleets")
    if result.wishes.out is not None:
        console.print(f"tier map: {result.wishes.out}")
    if result.wishes.report is not None:
        console.print(f"report: {result.wishes.report}")


def _print_infeasible(result: Result, plan: Infeasible) -> None:
    console = Console(stderr=True)
    console.print(f"infeasible: {plan.reason}")
    for number, remedy in enumerate(plan.remedies):
        words = "the smallest change found that would help" if number == 0 else "or"
        console.print(f"{words}: {remedy.text}")
        console.print(f"  ({remedy.evidence})")
    if plan.remedies:
        console.print(f"{MEANING}")
    if plan.nearest is not None:
        workers = " + ".join(map(_many, plan.nearest.counts.items()))
        console.print(f"the nearest fleet is {workers}, {plan.nearest.policy.name}")
    if not plan.remedies:
        console.print("no change of a single limit helps: other GPUs or another model are needed")
    for tier in result.left_out:
        console.print(f"tier {tier} was left out: no profile of its GPU with this model")


def _at_scale(plan: Plan) -> str:
    scale = plan.chosen.score.scale
    return f", the chosen one at {scale:.1%} of its size" if scale < 1 else ""


def _latencies(score: Score) -> str:
    return (
        f"TTFET {_short(score.ttfet_s)} s, TBT {_short(score.tbt_s * 1e3)} ms,"
        f" E2E {_short(score.e2e_s)} s"
    )


def _short(value: float) -> str:
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return number if math.isfinite(value) else "never"
