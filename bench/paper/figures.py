"""The figures: latencies and SLO attainment over load, and the front at saturation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.paper.findings import Row, front, mean, rows_of

mpl.use("Agg")
mpl.rcParams.update(
    {"svg.fonttype": "none", "svg.hashsalt": "conserve", "font.size": 9, "axes.grid": True}
)
mpl.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

SHOWN = {
    "collocated, least backlog": ("#7f7f7f", "s", "collocated"),
    "stock PD + decode radix": ("#bcbd22", "v", "stock PD + decode radix"),
    "coin flip 10 %": ("#9467bd", "x", "coin flip 10 %"),
    "dynamo-like": ("#8c564b", "^", "dynamo-like"),
    "ConServe, blind": ("#1f77b4", "o", "ConServe as published"),
    "work-conserving": ("#d62728", "D", "work-conserving (ours)"),
    "work-conserving, late last": ("#ff7f0e", "P", "ours, late last"),
    "work-conserving, mixed": ("#17becf", "X", "ours on mixed workers"),
    "work-conserving-tails": ("#e377c2", "*", "ours + tails (simulated only)"),
    "conserve-pack": ("#2ca02c", "h", "conserve-pack (ours)"),
}
WORST_SHOWN = 20
TITLES = {
    "paper": "The paper's workload, conversations/s",
    "paper_claude_code": "Claude Code sessions, load",
    "paper_bursty": "Bursty mix, load",
}
PANELS = (
    ("ttfet_p95", "p95 TTFET, times alone"),
    ("tbt_p95", "p95 last-turn TBT, times alone"),
    ("slo", "share that meets the SLO"),
)


def draw(found: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Path]:
    """One figure over loads for each workload; the fronts of the paper's."""
    for name, record in found.items():
        yield _save(_over_load(TITLES[name], record["rows"]), folder / f"{name}_loads.svg")
    if "paper" in found:
        rows = found["paper"]["rows"]
        yield _save(_fronts(rows, (1.25, 1.634, 2.124)), folder / "paper_front.svg")


def _over_load(title: str, rows: Sequence[Row]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    loads = sorted({row["load"] for row in rows if row["caps_w"] == "300/300"})
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        for policy, (colour, marker, words) in SHOWN.items():
            found = [rows_of(rows, "300/300", load)[policy] for load in loads]
            values = [mean(row, name) for row in found]
            low = [row["one_clock"][name][1] for row in found]
            high = [row["one_clock"][name][2] for row in found]
            axis.plot(loads, values, marker=marker, color=colour, label=words, lw=1.2, ms=4)
            axis.fill_between(loads, low, high, color=colour, alpha=0.08, lw=0)
        axis.set_xlabel(title)
        axis.set_title(label, fontsize=9)
        if name == "slo":
            axis.set_ylim(0, 1.02)
        elif name == "tbt_p95":
            axis.set_ylim(bottom=1)
        else:
            axis.set_yscale("log")
            axis.set_ylim(top=WORST_SHOWN)
            axis.set_yticks([2, 5, 10, 20], labels=["2", "5", "10", "20"], minor=False)
            axis.yaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _fronts(rows: Sequence[Row], loads: Sequence[float]) -> Figure:
    figure, axes = plt.subplots(1, len(loads), figsize=(11, 3.8), layout="constrained")
    for axis, load in zip(axes, loads, strict=True):
        _front(axis, rows_of(rows, "300/300", load), load)
    axes[0].set_ylabel("p95 last-turn TBT, times alone")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _front(axis: Axes, here: Mapping[str, Row], load: float) -> None:
    best = front(here.values())
    for policy, row in here.items():
        x, y = mean(row, "ttfet_p95"), mean(row, "tbt_p95")
        if policy in SHOWN:
            colour, marker, words = SHOWN[policy]
            axis.plot(x, y, marker, color=colour, label=words, ms=8)
        elif policy in best:
            axis.plot(x, y, ".", color="#aaaaaa", ms=6)
    line = sorted((mean(here[name], "ttfet_p95"), mean(here[name], "tbt_p95")) for name in best)
    axis.plot(*zip(*line, strict=True), color="#444444", lw=0.8, ls=":", zorder=0)
    axis.set_title(f"{load} conversations/s; dotted: nobody better in both", fontsize=9)
    axis.set_xlabel(f"p95 TTFET, times alone (stock PD: beyond {WORST_SHOWN})")
    axis.set_xlim(0, WORST_SHOWN)
    axis.set_ylim(1, None)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
