"""Figures of simulated runs, one line or bar a policy: SVG files that stand alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from conserve_sglang.report.chart import Bar, Chart, Series, bars, stacked, svg
from conserve_sglang.report.scale import short
from conserve_sglang.report.theme import standalone

MOST_POINTS = 200
NUM_COLORS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What is drawn of one run: its latencies by conversation in seconds, infinite for those that
    were not answered, and watts of each tier over time. `policy` names it, apart from all others.
    `tokens_per_joule` is None where power is not known."""

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
            Bar(name=run.policy, value=rate, note=f"{short(rate)}{_answered(run.e2e_s)}")
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
    """The share (per cent) of all conversations that arrived below each latency: a curve goes up to
    the share that was answered, and on at that height."""
    ends_at = max((value for _, values in runs for value in values if isfinite(value)), default=1.0)
    series = [
        Series(
            name=f"{policy}{_answered(values)}",
            points=_steps(values, ends_at),
            color=number % NUM_COLORS + 1,
            is_dashed=number % (2 * NUM_COLORS) >= NUM_COLORS,
        )
        for number, policy, values in _alike(runs)
        if values
    ]
    return svg(
        Chart(
            title=f"{name} of conversations, modelled",
            x_label=f"{name}, s",
            y_label="% of all conversations below",
            series=series,
            x_from_zero=True,
            y_to=100.0,
        ),
        style=style,
    )


def _alike(
    runs: Sequence[tuple[str, Sequence[float]]],
) -> list[tuple[int, str, Sequence[float]]]:
    """Runs that differ in no value as one: the first one's number, all their names, the values."""
    found: dict[tuple[float, ...], list[int]] = {}
    for number, (_, values) in enumerate(runs):
        found.setdefault(tuple(sorted(values)), []).append(number)
    return [
        (numbers[0], " = ".join(runs[number][0] for number in numbers), values)
        for values, numbers in found.items()
    ]


def _answered(latencies: Sequence[float]) -> str:
    """Behind a name, what share of the conversations was answered, if not all were."""
    num = sum(map(isfinite, latencies))
    return f" ({num / len(latencies):.1%} answered)" if num < len(latencies) else ""


def _steps(values: Sequence[float], ends_at: float) -> list[tuple[float, float]]:
    ordered = sorted(filter(isfinite, values))
    if not ordered:
        return [(0.0, 0.0), (ends_at, 0.0)]
    every = max(1, len(ordered) // MOST_POINTS)
    ranks = [*range(0, len(ordered), every), len(ordered) - 1]
    below = [(ordered[rank], 100 * (rank + 1) / len(values)) for rank in ranks]
    last = [] if len(ordered) == len(values) else [(ends_at, below[-1][1])]
    return [(ordered[0], 0.0), *below, *last]


def _power(run: RunFigures, style: str) -> str:
    title = f"power by tier, {run.policy}, modelled"
    return svg(
        Chart(title=title, x_label="time, s", y_label="W", series=stacked(run.watts)), style=style
    )
