"""The report of a request that no fleet keeps."""

from collections.abc import Sequence
from html import escape

from conserve_sglang.planning import Infeasible, Request
from conserve_sglang.planning.plan import Margin, margins_of
from conserve_sglang.planning.remedy import MEANING
from conserve_sglang.planning.request import KWH_A_DAY
from conserve_sglang.profiles import Profile
from conserve_sglang.report.options import brief
from conserve_sglang.report.page import command_line, listing, page, paragraph, section, table
from conserve_sglang.report.scale import short


def refusal_page(plan: Infeasible, profiles: Sequence[Profile], command: str) -> str:
    """The whole page; everything it needs is inside."""
    request = plan.request
    load = (
        f"{request.load.rate_per_s:g} conversations/s of {request.load.source}."
        f" Model: {request.inventory.model}. Modelled, none of it measured here."
    )
    head = [f"{plan.reason[0].upper()}{plan.reason[1:]}. No tier map was written."]
    if request.gaps_note:
        head.append(f"{request.gaps_note}.")
    changes = [f"{one.text} ({one.evidence})" for one in plan.remedies]
    return page(
        "Plan: none",
        [
            "<h1>No plan</h1>" + "".join(map(paragraph, head)) + paragraph(load, "soft"),
            _asked(plan),
            section(
                "Changes that would help, the smallest first",
                listing(changes or [f"{plan.no_remedy[0].upper()}{plan.no_remedy[1:]}."]),
                paragraph(MEANING, "soft"),
            ),
            section(
                "How this was computed",
                listing([f"profile {one.name}: times {one.provenance.kind}" for one in profiles]),
                command_line(command),
            ),
        ],
    )


def _asked(plan: Infeasible) -> str:
    """The limits, and what the nearest fleet makes of them."""
    inventory = plan.request.inventory
    gpus = ", ".join(f"{tier.num_gpus} x {tier.gpu} ({tier.name})" for tier in inventory.tiers)
    there_are = paragraph(f"GPUs there are: {gpus}.", "soft")
    if plan.nearest is None:
        limits = [f"{name}: {short(limit)} {unit}" for name, limit, unit in _limits(plan.request)]
        return section("What was asked", listing(limits), there_are)
    score = plan.nearest.score
    words = (
        f"The nearest fleet: {brief(plan.nearest)}; simulated with {score.num_conversations:,}"
        f" conversations, {score.answered:.1%} of them answered."
    )
    columns = [("limit", False), ("asked", True), ("nearest fleet", True), ("", False)]
    rows = [_row(margin) for margin in margins_of(plan.request, plan.nearest)]
    return section(
        "What was asked, and what came nearest", table(columns, rows), paragraph(words), there_are
    )


def _limits(request: Request) -> list[tuple[str, float, str]]:
    targets, mean_w = request.targets, request.mean_power_w
    level = f"p{targets.level * 100:g}"
    asked = (
        (f"TTFET {level}", targets.ttfet_s, "s"),
        (f"last-turn TBT {level}", targets.tbt_s, "s"),
        (f"E2E {level}", targets.e2e_s, "s"),
        ("peak power", request.power_budget_w, "W"),
        ("energy", None if mean_w is None else mean_w * KWH_A_DAY, "kWh a day"),
    )
    return [(name, limit, unit) for name, limit, unit in asked if limit is not None]


def _row(margin: Margin) -> list[str]:
    scale, unit = (1e3, "ms") if margin.unit == "s" and margin.limit < 1 else (1.0, margin.unit)
    kind, said = ("good", "kept") if margin.share >= 0 else ("bad", "broken")
    return [
        escape(margin.name),
        f"{short(margin.limit * scale)} {unit}",
        f"{short(margin.value * scale)} {unit}",
        f'<span class="{kind}">{said}</span>',
    ]
