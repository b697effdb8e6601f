"""A simulation's summary as text and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from .simulate_run import Result


def as_document(result: Result) -> dict[str, Any]:
    """Plain JSON values; `modelled` says that no time in it was measured."""
    return {
        "modelled": True,
        "tier_map": result.tier_map,
        "policy": result.policy,
        "seed": result.seed,
        "rate_per_s": result.rate_per_s,
        "alone_on": result.perf.name,
        "unit_costs": {
            tier: {"name": perf.name, "sources": dict(perf.sources)}
            for tier, perf in result.unit_costs.items()
        },
        "bad_lines": [asdict(line) for line in result.bad_lines],
        "num_left_out": result.num_left_out,
        "scaling": result.scaling,
        "num_kv_transfers": result.num_kv_transfers,
        "summary": asdict(result.summary),
    }


def print_summary(result: Result) -> None:
    """One row a latency, then counts and what was left out."""
    summary, console = result.summary, Console()
    table = Table(title=f"{result.policy} on {result.tier_map} (modelled)")
    for column in ("latency", "p50 s", "p95 s", "p50 x", "p95 x", "gmean x", "SLO s", "met"):
        table.add_column(column, justify="left" if column == "latency" else "right", no_wrap=True)
    latencies = {"TTFET": summary.ttfet, "last-turn TBT": summary.last_turn_tbt, "E2E": summary.e2e}
    for name, figures in latencies.items():
        if figures is None:
            continue
        table.add_row(
            name,
            _short(figures.p50_s),
            _short(figures.p95_s),
            f"{figures.p50_normalised:.2f}",
            f"{figures.p95_normalised:.2f}",
            f"{figures.geomean_normalised:.2f}",
            _short(figures.slo_s),
            f"{figures.slo_attainment:.1%}",
        )
    console.print(table)
    costs = ", ".join(f"{tier} {perf.name}" for tier, perf in result.unit_costs.items())
    console.print(f"unit costs: {costs}; no other GPU or model is known yet, whatever the map says")
    console.print(
        f"x: divided by the conversation's latency when it runs alone, {result.perf.name};"
        " SLO: 5 times the mean of these (the paper's), not the map's slo"
    )
    outcomes = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items())
    console.print(f"{summary.num_conversations} conversations: {outcomes}")
    for why, count in summary.unanswered_because.items():
        console.print(f"  {count} not answered: {why}")
    reasons = ", ".join(f"{count} {name}" for name, count in summary.turns_by_reason.items())
    console.print(f"{summary.num_turns} turns: {reasons}")
    console.print(
        f"{result.num_kv_transfers} KV transfers; {summary.output_tokens_per_s:.0f} output"
        f" tokens/s over {summary.duration_s:.0f} s"
    )
    if result.scaling:
        console.print(f"scaled: {result.scaling}")
    if result.num_left_out:
        console.print(f"{result.num_left_out} conversations do not fit the window: left out")
    for line in result.bad_lines[:5]:
        console.print(f"line {line.number} was not used: {line.why}", markup=False)
    if len(result.bad_lines) > 5:
        console.print(f"and {len(result.bad_lines) - 5} more lines that were not used")


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3f}"
