"""Figures of simulated runs, one line or bar a policy: SVG files that stand alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conserve_sglang.report.chart import Bar, Chart, Series, bars, stacked, svg
from conserve_sglang.report.scale import short
from conserve_sglang.report.theme import standalone

MOST_POINTS = 200
NUM_COLORS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What is drawn of one run: its latencies by conversation in seconds, and watts of each tier
    over time. `policy` names it, apart from all others. `tokens_per_joule` is None where power is
    not known."""

    policy: str
    ttfet_s: Sequence[float]
    last_turn_tbt_s: Sequence[float]
    e2e_s: Sequence[float]
    tokens_per_joule: float | None
    watts: Mapping[str, Sequence[tuple[float, float]]]


def figures(runs: Sequence[RunFigures]) -> dict[str, str]:
    """Files by name."""
    style = standalone()
    found = {
        "ttfet.svg": _shares("TTFET", [(run.policy, run.ttfet_s) for run in runs], style),
        "last_turn_tbt.svg": _shares(
            "last-turn TBT", [(run.policy, run.last_turn_tbt_s) for run in runs], style
        ),
        "e2e.svg": _shares("E2E", [(run.policy, run.e2e_s) for run in runs], style),
    }
    if all(run.tokens_per_joule is not None for run in runs):
        rows = [
            Bar(name=run.policy, value=rate, note=short(rate))
            for run in runs
            for rate in (run.tokens_per_joule or 0.0,)
        ]
        found["tokens_per_joule.svg"] = bars("tokens per joule, modelled", rows, style=style)
    for run in runs:
        if run.watts:
            name = re.sub(r"[^A-Za-z0-9.=-]+", "_", run.policy)
            found[f"power_{name}.svg"] = _power(run, style)
    return found


def _shares(name: str, runs: Sequence[tuple[str, Sequence[float]]], style: str) -> str:
    """The share of conversations (per cent) below each latency."""
    series = [
        Series(
            name=policy,
            points=_steps(values),
            color=number % NUM_COLORS + 1,
            is_dashed=number % (2 * NUM_COLORS) >= NUM_COLORS,
        )
        for number, (policy, values) in enumerate(runs)
        if values
    ]
    return svg(
        Chart(
            title=f"{name} of conversations, modelled",
            x_label=f"{name}, s",
            y_label="% of conversations below",
            series=series,
            x_from_zero=True,
        ),
        style=style,
    )


def _steps(values: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(values)
    every = max(1, len(ordered) // MOST_POINTS)
    ranks = [*range(0, len(ordered), every), len(ordered) - 1]
    below = [(ordered[rank], 100 * (rank + 1) / len(ordered)) for rank in ranks]
    return [(ordered[0], 0.0), *below]


def _power(run: RunFigures, style: str) -> str:
    title = f"power by tier, {run.policy}, modelled"
    return svg(Chart(title=title, x_label="s", y_label="W", series=stacked(run.watts)), style=style)
