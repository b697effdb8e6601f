"""A plan's charts: what `plan_page` puts together, each for a given width."""

import math
from collections.abc import Sequence

from conserve_sglang.planning import Option, Plan
from conserve_sglang.planning.tier_map import workers_of
from conserve_sglang.report.chart import Bar, Chart, Mark, Series, bars, stacked, svg
from conserve_sglang.report.fleet_drawing import Box, Group, fleet_svg
from conserve_sglang.report.options import workers_text
from conserve_sglang.report.plan_choices import Choice, is_drawn, joules_per_token
from conserve_sglang.report.scale import short


def fleet(plan: Plan, width: int) -> str:
    """The chosen map."""
    inventory = plan.request.inventory
    gpus = {tier.name: tier.gpu for tier in inventory.tiers}
    used: dict[tuple[str, str], int] = {}
    groups: dict[tuple[str, str], list[Group]] = {}
    for workers in workers_of(inventory, plan.chosen.counts):
        config = workers.config
        key = (config.tier, workers.host)
        used[key] = used.get(key, 0) + len(workers.gpu_ids)
        groups.setdefault(key, []).append(
            Group(
                name=f"{config.tier} {config.role.value}",
                gpu=gpus[config.tier],
                role=config.role,
                count=workers.count,
                tp=config.tp,
                knobs=_knobs(config.power_cap_w, config.sm_clock_mhz),
            )
        )
    boxes = [
        Box(
            host=host.name,
            groups=groups.get((tier.name, host.name), []),
            num_free=len(host.gpu_ids) - used.get((tier.name, host.name), 0),
        )
        for tier in inventory.tiers
        for host in tier.hosts
    ]
    return fleet_svg(boxes, width)


def _knobs(power_cap_w: float | None, sm_clock_mhz: int | None) -> str:
    words = [] if power_cap_w is None else [f"cap {power_cap_w:g} W"]
    if sm_clock_mhz is not None:
        words.append(f"SM clock {sm_clock_mhz} MHz")
    return ", ".join(words)


def front_of(options: Sequence[Option]) -> list[Option]:
    """The options that no other one beats in both TTFET and joules a token, by TTFET."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.score.ttfet_s, joules_per_token(one))):
        if not found or joules_per_token(option) < joules_per_token(found[-1]):
            found.append(option)
    return found


def pareto(plan: Plan, choices: Sequence[Choice], width: int) -> str:
    """Joules a token against TTFET, of all fleets that were simulated."""
    shown = [one for one in choices if is_drawn(one.option)]

    def dots(name: str, wanted: Sequence[Choice], color: int | str, large: bool) -> Series:
        return Series(
            name=name,
            points=[_place(one.option) for one in wanted],
            color=color,
            kind="dots",
            hints=[_hint(one) for one in wanted],
            tags=[one.letter for one in wanted],
            is_large=large,
        )

    kept = [one for one in shown if one.is_kept]
    others = [one for one in kept if plan.chosen not in one.options]
    series = [
        Series(
            name="Pareto front",
            points=[_place(one) for one in front_of([one.option for one in shown])],
            color="quiet",
        ),
        dots("breaks a limit", [one for one in shown if not one.is_kept], "bad", False),
        dots(
            "keeps all limits",
            others,
            1,
            False,
        ),
        dots("chosen", [one for one in shown if plan.chosen in one.options], "good", True),
    ]
    target = plan.request.targets.ttfet_s
    level = plan.request.targets.level * 100
    marks = []
    if target is not None:
        marks = [Mark(axis="x", value=target, label=f"TTFET target {short(target)} s")]
    return svg(
        Chart(
            title="J per token against TTFET, modelled",
            x_label=f"TTFET p{level:g}, s",
            y_label="J per token",
            series=[one for one in series if one.points],
            marks=marks,
            y_from_zero=False,
        ),
        width,
        340,
    )


def _place(option: Option) -> tuple[float, float]:
    return option.score.ttfet_s, joules_per_token(option)


def _hint(choice: Choice) -> str:
    policies = ", ".join(one.policy.name for one in choice.options)
    return f"{choice.letter} {workers_text(choice.option)}: {policies}".strip()


def power(plan: Plan, width: int) -> str:
    """Watts of each tier over the simulated time, one on top of the other."""
    budget = plan.request.power_budget_w
    return svg(
        Chart(
            title="power by tier over the simulated time, modelled",
            x_label="time, s",
            y_label="W",
            series=stacked(plan.chosen.score.power),
            marks=[]
            if budget is None
            else [Mark(axis="y", value=budget, label=f"power budget {short(budget)} W")],
        ),
        width,
    )


def load_sweep(plan: Plan, width: int) -> tuple[str, str, str, str]:
    """TTFET, last-turn TBT, E2E and tokens per joule over the load."""
    scores = [score for score in plan.load_sweep if math.isfinite(score.ttfet_s)]
    level = f"p{plan.request.targets.level * 100:g}"

    def line(name: str, unit: str, values: Sequence[float], target: float | None) -> str:
        points = [(score.load_per_s, value) for score, value in zip(scores, values, strict=True)]
        load = plan.chosen.score.load_per_s
        marks = [Mark(axis="x", value=load, label=f"planned for {short(load)}/s")]
        if target is not None:
            marks.append(Mark(axis="y", value=target, label=f"target {short(target)} {unit}"))
        hints = [f"{short(x)}/s: {short(y)} {unit}" for x, y in points]
        return svg(
            Chart(
                title=f"{name}, {unit}, modelled",
                x_label="conversations/s",
                y_label="",
                series=[Series(name="", points=points, color=1, kind="marked", hints=hints)],
                marks=marks,
            ),
            width,
            240,
        )

    targets = plan.request.targets
    tbt_ms = None if targets.tbt_s is None else targets.tbt_s * 1e3
    return (
        line(f"TTFET {level}", "s", [score.ttfet_s for score in scores], targets.ttfet_s),
        line(f"last-turn TBT {level}", "ms", [score.tbt_s * 1e3 for score in scores], tbt_ms),
        line(f"E2E {level}", "s", [score.e2e_s for score in scores], targets.e2e_s),
        line("energy efficiency", "tokens/J", [score.tokens_per_joule for score in scores], None),
    )


def comparison(plan: Plan, width: int) -> str:
    """Tokens per joule of the chosen map and of narrower choices that keep the limits."""
    rows = [
        Bar(
            name="chosen",
            value=plan.chosen.score.tokens_per_joule,
            note=short(plan.chosen.score.tokens_per_joule),
            color="good",
        )
    ]
    for one in plan.comparisons:
        if one.option is None or one.why:
            rows.append(Bar(name=f"{one.label}: not feasible", value=0.0, note="", color="quiet"))
            continue
        value = one.option.score.tokens_per_joule
        rows.append(Bar(name=one.label, value=value, note=short(value)))
    return bars("tokens per joule, modelled", rows, width)
