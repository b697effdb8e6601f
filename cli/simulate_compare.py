"""Several policies on one tier map: as a table, as JSON, and as figures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
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

from .simulate_run import Result, Wanted, run
from .simulate_view import (
    answered_of,
    as_document,
    never_note,
    print_budget,
    print_profiles,
    print_source,
    print_summary,
)
from .words import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run for each policy, and the files that were drawn."""

    results: tuple[Result, ...]
    written: tuple[Path, ...]


def play(tier_map: Path, source: Source, wanted: Wanted) -> Played:
    """Simulate each policy once. Raises ConfigError for options that do not fit together."""
    for name in wanted.policies:
        if wanted.policies.count(name) > 1:
            raise ConfigError(f"--policy {name} is given twice; leave one out")
    names: list[str | None] = [*wanted.policies] or [None]
    results = tuple(run(tier_map, source, name, wanted) for name in names)
    written = () if wanted.figures is None else tuple(write_figures(wanted.figures, results))
    return Played(results=results, written=written)


def show(played: Played, *, as_json: bool) -> None:
    """Print it: a single run with all its figures, several beside each other. Exit code 1 where no
    turn was served in any."""
    if as_json:
        typer.echo(json.dumps(documents(played.results), indent=2))
    elif len(played.results) == 1:
        print_summary(played.results[0])
    else:
        print_comparison(played.results)
    for path in played.written if not as_json else ():
        typer.echo(f"figure: {path}")
    if not any(result.summary.num_turns for result in played.results):
        typer.echo("error: no turn was served: nothing was simulated", err=True)
        raise typer.Exit(1)


def documents(results: Sequence[Result]) -> dict[str, Any]:
    """Plain JSON values: a run's own if there is one, else all of them."""
    if len(results) == 1:
        return as_document(results[0])
    return {"modelled": True, "runs": [as_document(result) for result in results]}


def print_comparison(results: Sequence[Result]) -> None:
    """One row a policy, and what a run alone would tell beside its figures."""
    title = f"policies on {results[0].tier_map} (modelled)"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(Text(_on_lines(result.label)), *_cells(result))
    console = Console()
    widest = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    Console(width=max(console.width, widest)).print(table)
    console.print(f"met: {_met(results[0])}; TBT: of last turns", markup=False)
    if note := never_note(results):
        console.print(note)
    print_profiles(console, results)
    for result in results:
        for why, count in result.summary.unanswered_because.items():
            told = f"{result.label}: {counted(count, 'conversation')} not answered: {why}"
            console.print(told, markup=False)
        if result.budget is not None:
            console.print(f"{result.label}:", markup=False)
            print_budget(console, result)
    print_source(console, results[0])


WIDEST = 1000
_COLUMNS = (
    "answered", "TTFET\np50 s", "TTFET\np95 s", "TBT\np95 ms", "E2E\np95 s", "met", "W",
    "tokens\n/J",
)  # fmt: skip


def _on_lines(label: str) -> str:
    """A policy's parameters each on a line of its own."""
    name, colon, params = label.partition(":")
    return name + colon + "".join(f"\n  {each}" for each in params.split(",") if each)


def _met(result: Result) -> str:
    if result.slo is None:
        return f"TTFET within 5 times its mean alone on {result.alone_on}"
    targets = {
        "TTFET": result.slo.ttfet_s,
        "TBT": result.slo.last_turn_tbt_s,
        "E2E": result.slo.e2e_s,
    }
    told = " and ".join(f"{name} {value:g} s" for name, value in targets.items() if value)
    return f"{told} ({result.judged_by})"


def _cells(result: Result) -> tuple[str, ...]:
    summary, energy = result.summary, result.summary.modelled_energy
    per_j = None if energy is None else energy.counted_tokens_per_j
    met = result.attained
    if result.slo is None and summary.ttfet is not None:
        met = summary.ttfet.slo_attainment
    return (
        _share(answered_of(result)),
        _seconds(summary.ttfet, 50),
        _seconds(summary.ttfet, 95),
        _seconds(summary.last_turn_tbt, 95, 1e3),
        _seconds(summary.e2e, 95),
        _share(met),
        "-" if energy is None or energy.mean_w is None else f"{energy.mean_w:,.0f}",
        "-" if per_j is None else f"{per_j:.3g}",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _seconds(figures_: Figures | None, percent: int, scale: float = 1.0) -> str:
    if figures_ is None:
        return "-"
    value = scale * (figures_.p50_s if percent == 50 else figures_.p95_s)
    if not isfinite(value):
        return "never"
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
