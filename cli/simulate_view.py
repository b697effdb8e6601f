"""A simulation's summary as text and as JSON."""

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conserve_sglang.profiles import Profile
from conserve_sglang.sim import ModelledEnergy, perf_model_of
from conserve_sglang.sim.budget import BudgetSummary

from .beyond_view import as_beyond, beyond_lines
from .simulate_run import Result
from .trace_view import place_of

MOST_BAD_LINES_SHOWN = 5

_UNKNOWN = {
    "request": "what a request takes beside its worker's steps",
    "handoff": "what a prefiller's handoff to a decoder takes beside the KV's move",
    "first_handoff": "what the first handoff of each such pair takes beyond a later one",
}


def as_document(result: Result) -> dict[str, Any]:
    """Plain JSON values; `modelled` says that no time in it was measured."""
    return {
        "modelled": True,
        "tier_map": result.tier_map,
        "policy": result.policy,
        "params": dict(result.params),
        "seed": result.seed,
        "rate_per_s": result.rate_per_s,
        "alone_on": result.perf.name,
        "unit_costs": {
            tier: {
                "name": profile.name,
                "is_estimated": profile.is_estimated,
                "sources": dict(perf_model_of(profile).sources),
                "closed_form_errors": dict(perf_model_of(profile).errors),
                "unknown": list(perf_model_of(profile).unknown),
            }
            for tier, profile in result.profiles.items()
        },
        "beyond_profile": [as_beyond(one) for one in result.beyond],
        "notes": list(result.notes),
        "bad_lines": [asdict(line) for line in result.bad_lines],
        "num_left_out": result.num_left_out,
        "scaling": result.scaling,
        "num_kv_transfers": result.num_kv_transfers,
        "summary": asdict(result.summary),
        "budget": None if result.budget is None else asdict(result.budget),
    }


def print_result(result: Result, *, as_json: bool) -> None:
    """For a reader, or for a program."""
    if as_json:
        typer.echo(json.dumps(as_document(result), indent=2))
    else:
        print_summary(result)


def print_summary(result: Result) -> None:
    """One row a latency, then counts and what was left out."""
    summary, console = result.summary, Console()
    table = Table(title=Text(f"{result.label} on {result.tier_map} (modelled)"))
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
    if table.row_count:
        console.print(table)
    print_profiles(console, result)
    _print_definitions(console, result)
    _print_counts(console, result)
    _print_energy(console, summary.modelled_energy)
    if result.budget is not None:
        print_budget(console, result.budget)
    print_source(console, result)


def print_source(console: Console, result: Result) -> None:
    """What of the workload was not played as it is given."""
    if result.scaling:
        console.print(f"scaled: {result.scaling}")
    if result.num_left_out:
        console.print(f"{result.num_left_out} conversations do not fit the window: left out")
    for line in result.bad_lines[:MOST_BAD_LINES_SHOWN]:
        console.print(f"{place_of(line)} was not used: {line.why}", markup=False)
    more = len(result.bad_lines) - MOST_BAD_LINES_SHOWN
    if more > 0:
        console.print(f"and {more} more lines that were not used; --json has all")


def print_profiles(console: Console, result: Result) -> None:
    """Where each tier's unit costs come from, and what had to be taken instead."""
    for tier, profile in result.profiles.items():
        console.print(f"profile of tier {tier}: {_named(profile)}")
        if unknown := perf_model_of(profile).unknown:
            what = " and ".join(_UNKNOWN[name] for name in unknown)
            console.print(f"  {what}: not known, counted as 0")
    for note in (*beyond_lines([result.beyond]), *result.notes):
        console.print(note, markup=False)


def _print_definitions(console: Console, result: Result) -> None:
    console.print(
        f"x: divided by the conversation's latency when it runs alone, {result.perf.name};"
        " SLO: 5 times the mean of these (the paper's), not the map's slo"
    )


def _print_counts(console: Console, result: Result) -> None:
    summary = result.summary
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


def _named(profile: Profile) -> str:
    watts = profile.power_provenance
    return f"{profile.name} (times {profile.provenance.kind}" + (
        f", watts {watts.kind})" if watts is not None else ", watts unknown)"
    )


def _print_energy(console: Console, energy: ModelledEnergy | None) -> None:
    """Joules by phase, and per conversation, turn and token. Modelled, and said to be."""
    if energy is None:
        console.print("energy: not modelled, a profile has no watts")
        return
    if energy.total_j <= 0:
        return  # nothing was done
    parts = {
        "prefill": energy.prefill_j,
        "append prefill": energy.append_prefill_j,
        "decode": energy.decode_j,
        "idle": energy.idle_j,
    }
    shares = ", ".join(f"{name} {joules / energy.total_j:.0%}" for name, joules in parts.items())
    console.print(
        f"energy (modelled): {energy.total_j:,.0f} J, mean {energy.mean_w or 0:,.0f} W; {shares}"
    )
    per = {
        "conversation": energy.conversation_j,
        "turn": energy.turn_j,
        "output token": energy.output_token_j,
        "counted token": energy.counted_token_j,
    }
    each = ", ".join(f"{joules:.4g} a {name}" for name, joules in per.items() if joules is not None)
    console.print(f"joules (modelled): {each}")


def print_budget(console: Console, budget: BudgetSummary) -> None:
    """What the power controller made of the budget."""
    named = "no power budget" if budget.power_budget_w is None else f"{budget.power_budget_w:,g} W"
    console.print(
        f"budget (modelled): {named}; more in {budget.num_over} of {budget.num_periods} s,"
        f" at most {budget.max_w:,.0f} W"
    )
    moves = ", ".join(f"{reason} {count}" for reason, count in budget.num_moves.items())
    caps = ", ".join(f"{tier} {watts:g} W" for tier, watts in budget.caps_w.items())
    console.print(f"moves: {moves or 'none'}; caps at the end: {caps}")
    if budget.is_infeasible:
        console.print("the least caps do not fit the budget")


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3f}"
