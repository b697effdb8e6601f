"""Several policies on one tier map: as a table, as JSON, and as figures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.report.sim_figures import RunFigures, figures
from conserve_sglang.sim import Figures
from conserve_sglang.traces import Source

from .beyond_view import beyond_lines
from .simulate_run import Result, run
from .simulate_view import (
    as_document,
    print_budget,
    print_profiles,
    print_source,
    print_summary,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to play: under which policies (none: the tier map's), with which KV room and profiles;
    `figures`: the folder to draw into; `keeps_budget`: under the power controller."""

    policies: tuple[str, ...]
    kv_capacity_tokens: int | None
    profiles: tuple[str, ...]
    figures: Path | None
    keeps_budget: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run for each policy, and the files that were drawn."""

    results: tuple[Result, ...]
    written: tuple[Path, ...]


def play(tier_map: Path, source: Source, wanted: Wanted) -> Played:
    """Simulate each policy once. Raises ConfigError for options that do not fit together."""
    names: list[str | None] = [*dict.fromkeys(wanted.policies)] or [None]
    draws = wanted.figures is not None
    results = tuple(
        run(
            tier_map,
            source,
            name,
            wanted.kv_capacity_tokens,
            wanted.profiles,
            wants_watts=draws,
            keeps_budget=wanted.keeps_budget,
        )
        for name in names
    )
    written = () if wanted.figures is None else tuple(write_figures(wanted.figures, results))
    return Played(results=results, written=written)


def show(played: Played, *, as_json: bool) -> None:
    """Print it: a single run with all its figures, several beside each other."""
    if as_json:
        typer.echo(json.dumps(documents(played.results), indent=2))
        return
    if len(played.results) == 1:
        print_summary(played.results[0])
    else:
        print_comparison(played.results)
    for path in played.written:
        typer.echo(f"figure: {path}")


def documents(results: Sequence[Result]) -> dict[str, Any]:
    """Plain JSON values: a run's own if there is one, else all of them."""
    if len(results) == 1:
        return as_document(results[0])
    return {"modelled": True, "runs": [as_document(result) for result in results]}


def print_comparison(results: Sequence[Result]) -> None:
    """One row a policy, and what a run alone would tell beside its figures."""
    title = f"policies on {results[0].tier_map} (modelled)"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("policy", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(Text(result.label), *_cells(result))
    console = Console()
    console.print(table)
    for line in beyond_lines([result.beyond for result in results]):
        console.print(line, markup=False)
    console.print("met: TTFET within 5 times its mean run alone; TBT: of last turns")
    print_profiles(console, results[0])
    for note in dict.fromkeys(note for each in results[1:] for note in each.notes):
        if note not in results[0].notes:
            console.print(note, markup=False)
    for result in results:
        for why, count in result.summary.unanswered_because.items():
            told = f"{result.label}: {count} conversations not answered: {why}"
            console.print(told, markup=False)
        if result.budget is not None:
            console.print(f"{result.label}:", markup=False)
            print_budget(console, result.budget)
    print_source(console, results[0])


_COLUMNS = (
    "TTFET\np50 s", "TTFET\np95 s", "TBT\np95 ms", "E2E\np95 s", "met", "W", "tokens/J"
)  # fmt: skip


def _cells(result: Result) -> tuple[str, ...]:
    summary, energy = result.summary, result.summary.modelled_energy
    per_j = None if energy is None else energy.counted_tokens_per_j
    return (
        _seconds(summary.ttfet, 50),
        _seconds(summary.ttfet, 95),
        _seconds(summary.last_turn_tbt, 95, 1e3),
        _seconds(summary.e2e, 95),
        "-" if summary.ttfet is None else f"{summary.ttfet.slo_attainment:.1%}",
        "-" if energy is None or energy.mean_w is None else f"{energy.mean_w:,.0f}",
        "-" if per_j is None else f"{per_j:.3g}",
    )


def _seconds(figures_: Figures | None, percent: int, scale: float = 1.0) -> str:
    if figures_ is None:
        return "-"
    value = scale * (figures_.p50_s if percent == 50 else figures_.p95_s)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_figures(folder: Path, results: Sequence[Result]) -> list[Path]:
    """SVG files of all runs, in a folder that is made if it is not there."""
    drawn = figures([_figures(result) for result in results])
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawn.items():
            (folder / name).write_text(text, encoding="utf-8")
            written.append(folder / name)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error
    return written


def _figures(result: Result) -> RunFigures:
    energy = result.summary.modelled_energy
    return RunFigures(
        policy=result.label,
        ttfet_s=result.latencies.ttfet_s,
        last_turn_tbt_s=result.latencies.last_turn_tbt_s,
        e2e_s=result.latencies.e2e_s,
        tokens_per_joule=None if energy is None else energy.counted_tokens_per_j,
        watts=result.watts,
    )
