"""The report of a plan."""

import math
from collections.abc import Sequence
from html import escape

from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Objective, Plan
from conserve_sglang.planning.judging import how_judged
from conserve_sglang.planning.plan import Margin
from conserve_sglang.planning.remedy import MEANING
from conserve_sglang.planning.request import KWH_A_DAY
from conserve_sglang.profiles import Profile, Provenance
from conserve_sglang.report import plan_charts as charts
from conserve_sglang.report.options import brief, params_text
from conserve_sglang.report.page import (
    NARROW,
    badge,
    command_line,
    either,
    fitting,
    listing,
    page,
    pair,
    paragraph,
    said,
    section,
    table,
    tiles,
)
from conserve_sglang.report.plan_choices import choices_of, choices_table, left_out_text
from conserve_sglang.report.scale import short

_OBJECTIVES = {
    Objective.TOKENS_PER_JOULE: "most tokens per joule at the demanded load",
    Objective.LOAD: "most load within the limits",
    Objective.WATTS: "least peak power at the demanded load",
}
_APPROXIMATIONS = (
    "Candidates: operating points of each GPU, knob and role from its profile and queueing"
    " approximations (M/G/c for a pool of prefillers; a decoder's batch from its load, appends and"
    " affine step time; Poisson spread of turns and KV), chosen by an integer program with HiGHS.",
    "The figures on this page are of the simulator, which drives the router's own dispatcher and"
    " policies over virtual time with the same profiles: modelled, none of it measured here.",
    "Fleets are found by short runs. The choice is judged by long ones: of each figure the worst of"
    " three seeds, the first fifth of each run left out, and with 5% more load, evenly spaced, the"
    " turns under way must not grow by 2 or more for a hundred conversations. Other loads and"
    " wrong profiles: one such run; where the load is more than is carried, figures grow with its"
    " length.",
    "GPUs that are not used are counted with no power. Hosts' CPUs, fans and power supplies are"
    " not counted.",
    "Tokens per joule count input and output of every turn, history included each time, over all"
    " joules of the GPUs in use, idle time included (as arXiv 2606.01839 counts), while the load"
    " goes on: a run's beginning and end are left out.",
)


def plan_page(plan: Plan, profiles: Sequence[Profile], command: str) -> str:
    """The whole page; everything it needs is inside."""
    parts = [
        _head(plan),
        _map(plan),
        _margins(plan),
        _choices(plan),
        _power(plan),
        _load(plan),
        _doubts(plan),
        _comparisons(plan),
        _profiles(plan, profiles),
        section(
            "How this was computed",
            listing(_APPROXIMATIONS),
            paragraph(_effort(plan), "soft"),
            command_line(command),
        ),
    ]
    return page(f"Plan: {brief(plan.chosen)}", [part for part in parts if part])


def _head(plan: Plan) -> str:
    request, score = plan.request, plan.chosen.score
    title = escape(brief(plan.chosen))
    load = (
        f"{short(score.load_per_s)} conversations/s of {request.load.source};"
        f" {_OBJECTIVES[request.objective]}. Model: {request.inventory.model}."
    )
    level = f"p{request.targets.level * 100:g}"
    values = [
        (short(score.tokens_per_joule), "tokens per joule, modelled", ""),
        (f"{score.mean_w:,.0f} W", "mean power, modelled", ""),
        (f"{plan.chosen.peak_w:,.0f} W", _of("peak power", request.power_budget_w, "W"), ""),
        (f"{short(score.ttfet_s)} s", _of(f"TTFET {level}", request.targets.ttfet_s, "s"), ""),
        (
            f"{short(score.tbt_s * 1e3)} ms",
            _of(f"last-turn TBT {level}", _ms(request.targets.tbt_s), "ms"),
            "",
        ),
        (f"{short(score.e2e_s)} s", _of(f"E2E {level}", request.targets.e2e_s, "s"), ""),
        (f"{plan.chosen.num_gpus} of {request.inventory.num_gpus}", "GPUs in use", ""),
        (f"{short(score.load_per_s)}/s", "conversations that come", ""),
    ]
    gaps = paragraph(f"{request.gaps_note}.", "soft") if request.gaps_note else ""
    return f"<h1>{title}</h1>{paragraph(load, 'soft')}{tiles(values)}{gaps}"


def _of(name: str, limit: float | None, unit: str) -> str:
    return name if limit is None else f"{name}, limit {short(limit)} {unit}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _map(plan: Plan) -> str:
    policy = plan.chosen.policy
    params = params_text(policy)
    words = f"Policy {policy.name}" + (f" ({params})" if params else "") + "."
    if any(config.role is Role.PREFILL for config in plan.chosen.counts):
        words += " Turn 1 is prefilled on a prefill worker; its KV moves once, to a decode worker."
    return section(
        "The map", fitting(lambda width: charts.fleet(plan, width)), paragraph(words, "soft")
    )


def _margins(plan: Plan) -> str:
    rows = [_margin_row(plan, margin) for margin in plan.margins]
    columns = [("limit", False), ("value", True), ("limit", True), ("left", True)]
    columns += [(f"seed {score.runs.seeds[0]}", True) for score in plan.chosen.by_seed]
    held = [f"Held back by {one.text}." for one in plan.bindings]
    if plan.is_rescued:
        held = ["What holds it back is not known: the integer program found no choice."]
    said = listing(held or ["Held back by the demanded load alone: no limit costs anything."])
    shown = table(columns, rows) if rows else paragraph("No limit was set.")
    judged = how_judged(plan.chosen.score)
    rule = paragraph(f"Judged by {judged}.", "soft")
    return section("Margins, and what binds", shown, rule, said)


def _margin_row(plan: Plan, margin: Margin) -> list[str]:
    scale, unit = (1e3, "ms") if margin.unit == "s" and margin.limit < 1 else (1.0, margin.unit)
    kind = "bad" if margin.share < 0 else ("warn" if margin.share < 0.05 else "good")
    others = []
    for score in plan.chosen.by_seed:
        of_name = {
            "TTFET": score.ttfet_s,
            "last-turn TBT": score.tbt_s,
            "E2E": score.e2e_s,
            "energy": score.mean_w * KWH_A_DAY,
        }
        value = next((v for name, v in of_name.items() if margin.name.startswith(name)), None)
        others.append("" if value is None else short(value * scale))
    return [
        escape(margin.name),
        f"{short(margin.value * scale)} {unit}",
        f"{short(margin.limit * scale)} {unit}",
        f'<span class="{kind}">{margin.share:.1%}</span>',
        *others,
    ]


def _choices(plan: Plan) -> str:
    choices = choices_of(plan)
    words = left_out_text(choices)
    return section(
        "The choice, and the runners-up",
        fitting(lambda width: charts.pareto(plan, choices, width)),
        choices_table(plan, choices),
        paragraph(words, "soft") if words else "",
    )


def _power(plan: Plan) -> str:
    if not plan.chosen.score.power:
        return ""
    return section("Power over time", fitting(lambda width: charts.power(plan, width)))


def _load(plan: Plan) -> str:
    if not plan.load_sweep:
        return ""
    unanswered = [score for score in plan.load_sweep if not math.isfinite(score.ttfet_s)]
    words = "".join(
        paragraph(
            f"At {short(score.load_per_s)} conversations/s so many are not answered"
            f" ({1 - score.answered:.1%}) that the percentile never ends.",
            "soft",
        )
        for score in unanswered
    )
    drawings = zip(charts.load_sweep(plan, 480), charts.load_sweep(plan, NARROW), strict=True)
    return section(
        "If the load is another", pair(*(either(wide, narrow) for wide, narrow in drawings)), words
    )


def _doubts(plan: Plan) -> str:
    if not plan.doubts:
        return ""
    level = f"p{plan.request.targets.level * 100:g}"
    columns = [
        ("if the profiles are wrong", False), (f"TTFET {level}, s", True),
        (f"TBT {level}, ms", True), (f"E2E {level}, s", True), ("mean W", True),
        ("tokens/J", True), ("targets", False),
        ("first choice of the program", False),
    ]  # fmt: skip
    rows = []
    for doubt in plan.doubts:
        score = doubt.score
        is_kept = score.keeps(plan.request.targets)
        said = {True: "the same", False: "another", None: "none"}[doubt.is_same_choice]
        rows.append(
            [
                escape(doubt.label),
                short(score.ttfet_s),
                short(score.tbt_s * 1e3),
                short(score.e2e_s),
                f"{score.mean_w:,.0f}",
                short(score.tokens_per_joule),
                badge("kept", "good") if is_kept else badge("broken", "bad"),
                said,
            ]
        )
    return section("If a profile is wrong", table(columns, rows))


def _comparisons(plan: Plan) -> str:
    if not plan.comparisons:
        return ""
    lines = [f"{one.label}: {one.why}" for one in plan.comparisons if one.option is None or one.why]
    return section(
        "Against one kind of GPU, and against no caps",
        fitting(lambda width: charts.comparison(plan, width)),
        listing(lines),
        paragraph(MEANING, "soft") if lines else "",
    )


def _profiles(plan: Plan, profiles: Sequence[Profile]) -> str:
    columns = [
        ("profile", False), ("GPU", False), ("times", False), ("watts", False), ("source", False),
    ]  # fmt: skip
    rows = [
        [
            f"<code>{escape(profile.name)}</code>",
            escape(profile.gpu),
            _kind(profile.provenance),
            _kind(profile.power_provenance),
            said(profile.provenance.source),
        ]
        for profile in profiles
    ]
    beyond = [f"{one.text[0].upper()}{one.text[1:]}." for one in plan.chosen.score.beyond]
    reached = (
        paragraph("Part of the choice lies beyond the points of its profiles:") + listing(beyond)
        if beyond
        else paragraph("All that the choice was simulated with lies within its profiles' points.")
    )
    words = (
        "Caps below what a profile was taken at are derived from it, which is an estimate too."
        " Every joule and watt on this page is modelled."
    )
    return section(
        "Where the numbers come from",
        table(columns, rows),
        reached,
        listing([_unknown_cap(gpu) for gpu in plan.doubtful_caps]),
        paragraph(words, "soft"),
    )


def _unknown_cap(gpu: str) -> str:
    return (
        f"The least power cap that the {gpu} accepts is not known here; look at its Min Power Limit"
        " (nvidia-smi -q -d POWER) before the map is launched."
    )


def _kind(provenance: Provenance | None) -> str:
    if provenance is None:
        return badge("none", "bad")
    kinds = {"measured": "good", "published": "", "estimated": "warn"}
    error = f'<br><span class="soft">{said(provenance.error)}</span>' if provenance.error else ""
    return badge(provenance.kind, kinds[provenance.kind]) + error


def _effort(plan: Plan) -> str:
    scale = plan.chosen.score.scale
    size = f" The chosen one was simulated at {scale:.1%} of its size." if scale < 1 else ""
    return (
        f"{plan.num_columns} operating points; integer programs {plan.optimizer_s:.1f} s;"
        f" {len(plan.options)} fleets simulated in {plan.simulation_s:.1f} s.{size}"
        f" {plan.proven[0].upper()}{plan.proven[1:]}; the simulator chose among these fleets."
    )
