"""A plan as text."""

import json
import math
from collections.abc import Sequence

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from conserve_sglang.planning import Infeasible, Objective, Option, Plan, Score
from conserve_sglang.planning.judging import how_judged
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.remedy import MEANING
from conserve_sglang.planning.tier_map import budget_note
from conserve_sglang.report.options import grouped, name_of, names_apart
from conserve_sglang.report.scale import LARGEST_OF_THREE_DIGITS

from .beyond_view import beyond_lines
from .plan_document import as_document
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


def _print_plan(result: Result, plan: Plan) -> None:
    console = Console()
    console.print(_options_table(plan))
    margins = ", ".join(
        f"{one.name} {_short(one.value)} of {_short(one.limit)} {one.unit} ({one.share:.0%} left)"
        for one in plan.margins
    )
    console.print(f"margins: {margins or 'no limits were set'}")
    if plan.request.gaps_note:
        console.print(plan.request.gaps_note)
    for line in _judged_lines(plan):
        console.print(line)
    for line in beyond_lines([plan.chosen.score.beyond]):
        console.print(line, markup=False)
    for score in plan.chosen.by_seed:
        figures = f"{_latencies(score)}, {_short(score.tokens_per_joule)} tokens/J"
        console.print(f"seed {score.runs.seeds[0]}: {figures}")
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
    groups = _rows(plan)
    shown = [option for alike in groups for option in alike]
    names = dict(zip(map(id, shown), names_apart(shown), strict=True))
    for alike in groups:
        mark = _mark(plan, alike)
        option, score = alike[0], alike[0].score
        policies = "\n".join(names[id(one)] for one in alike).split("\n")
        rows = [*map(_many, option.counts.items()), *(f"[dim]{one}[/dim]" for one in policies)]
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


def _rows(plan: Plan) -> list[list[Option]]:
    """The choice, others that keep all limits, and some that do not when judged."""
    return grouped([plan.chosen, *plan.runner_ups])[:5] + grouped(plan.rejected)[:2]


def _mark(plan: Plan, alike: Sequence[Option]) -> str:
    if plan.chosen in alike:
        return "*"
    return "!" if alike[0] in plan.rejected else " " if alike[0].is_judged else "~"


def _judged_lines(plan: Plan) -> list[str]:
    """What the figures of the table rest on."""
    lines = [f"judged by {how_judged(plan.chosen.score)}"]
    for alike in _rows(plan):
        if _mark(plan, alike) == "~":
            lines.append(f"~ not judged: by {how_judged(alike[0].score)}")
            break
    if any(_mark(plan, alike) == "!" for alike in _rows(plan)):
        lines.append("! breaks a limit when judged, though not in a short run")
    return lines


def _many(pool: tuple[Config, int]) -> str:
    return f"{pool[1]} x {name_of(pool[0])}"


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
    if note := budget_note(plan.request, plan.chosen.counts):
        console.print(note)
    if result.wishes.out is not None:
        console.print(f"tier map: {result.wishes.out}")
    if result.wishes.report is not None:
        console.print(f"report: {result.wishes.report}")


def _print_infeasible(result: Result, plan: Infeasible) -> None:
    console = Console(stderr=True)
    console.print(f"infeasible: {plan.reason}")
    if plan.request.gaps_note and not plan.impossible:
        console.print(plan.request.gaps_note)
    for number, remedy in enumerate(plan.remedies):
        words = "the smallest change found that would help" if number == 0 else "or"
        console.print(f"{words}: {remedy.text}")
        console.print(f"  ({remedy.evidence})")
    if plan.remedies:
        console.print(f"{MEANING}")
    if plan.nearest is not None:
        workers = " + ".join(map(_many, plan.nearest.counts.items()))
        console.print(f"the nearest fleet is {workers}, {plan.nearest.policy.name}")
    if not plan.remedies and not plan.impossible:
        console.print(plan.no_remedy)
    for tier in result.left_out:
        console.print(f"tier {tier} was left out: no profile of its GPU with this model")
    if result.wishes.out is not None:
        console.print(f"no tier map was written: {_older(result)}", soft_wrap=True)
    if result.wishes.report is not None:
        console.print(f"report: {result.wishes.report}", soft_wrap=True)


def _older(result: Result) -> str:
    if result.older_map:
        return f"{result.wishes.out} is of an earlier plan"
    return f"{result.wishes.out} is not there"


def _at_scale(plan: Plan) -> str:
    scale = plan.chosen.score.scale
    return f", the chosen one at {scale:.1%} of its size" if scale < 1 else ""


def _latencies(score: Score) -> str:
    return (
        f"TTFET {_short(score.ttfet_s, ' s')}, TBT {_short(score.tbt_s * 1e3, ' ms')},"
        f" E2E {_short(score.e2e_s, ' s')}"
    )


def _short(value: float, unit: str = "") -> str:
    number = f"{value:,.0f}" if value >= LARGEST_OF_THREE_DIGITS else f"{value:.3g}"
    return number + unit if math.isfinite(value) else "never"
