"""A simulation's summary as text and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conserve_sglang.profiles import Profile
from conserve_sglang.sim import Figures, ModelledEnergy, Outcome, perf_model_of

from .beyond_view import as_beyond, beyond_lines
from .simulate_run import MAPS_OWN, Result
from .trace_view import place_of
from .words import counted, finite

MOST_BAD_LINES_SHOWN = 5

_UNKNOWN = {
    "request": "what a request takes beside its worker's steps",
    "handoff": "what a prefiller's handoff to a decoder takes beside the KV's move",
    "first_handoff": "what the first handoff of each such pair takes beyond a later one",
}


def as_document(result: Result) -> dict[str, Any]:
    """Plain JSON values; `modelled` says that no time in it was measured. A latency that never ends
    is null."""
    document: dict[str, Any] = finite(_document(result))
    return document


def _document(result: Result) -> dict[str, Any]:
    return {
        "modelled": True,
        "tier_map": result.tier_map,
        "policy": result.policy,
        "params": dict(result.params),
        "seed": result.seed,
        "rate_per_s": result.rate_per_s,
        "alone_on": result.alone_on,
        "judged_by": result.judged_by,
        "attained": result.attained,
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
        "answered": answered_of(result),
        "summary": asdict(result.summary),
        "budget": _budget_document(result),
    }


def _budget_document(result: Result) -> dict[str, Any] | None:
    budget = result.budget
    if budget is None:
        return None
    return {**asdict(budget), "output_token_j": _output_token_j(result)}


def answered_of(result: Result) -> float | None:
    """The share of the conversations that was answered; None of none."""
    summary = result.summary
    if not summary.num_conversations:
        return None
    return summary.outcomes.get(Outcome.ANSWERED.value, 0) / summary.num_conversations


def print_summary(result: Result) -> None:
    """One row a latency, then counts and what was left out."""
    summary, console = result.summary, Console()
    table = Table(title=Text(f"{result.label} on {result.tier_map} (modelled)"))
    for column in ("latency", "p50 s", "p95 s", "p50 x", "p95 x", "gmean x", "SLO s", "met"):
        table.add_column(column, justify="left" if column == "latency" else "right", no_wrap=True)
    latencies = {"TTFET": summary.ttfet, "last-turn TBT": summary.last_turn_tbt, "E2E": summary.e2e}
    for name, figures in latencies.items():
        if figures is not None:
            table.add_row(name, *_cells(figures))
    if table.row_count:
        console.print(table)
    print_profiles(console, [result])
    _print_definitions(console, result)
    _print_counts(console, result)
    _print_energy(console, summary.modelled_energy)
    print_budget(console, result)
    print_source(console, result)


def _cells(figures: Figures) -> tuple[str, ...]:
    met = figures.slo_attainment
    return (
        _short(figures.p50_s),
        _short(figures.p95_s),
        _times(figures.p50_normalised),
        _times(figures.p95_normalised),
        _times(figures.geomean_normalised),
        "-" if figures.slo_s is None else _short(figures.slo_s),
        "-" if met is None else f"{met:.1%}",
    )


def print_source(console: Console, result: Result) -> None:
    """What of the workload was not played as it is given."""
    if result.scaling:
        console.print(f"scaled: {result.scaling}", markup=False)
    elif result.num_left_out:
        num = counted(result.num_given, "conversation")
        console.print(f"{result.num_left_out} of {num} left out: larger than the window")
    for line in result.bad_lines[:MOST_BAD_LINES_SHOWN]:
        console.print(f"{place_of(line)} was not used: {line.why}", markup=False)
    more = len(result.bad_lines) - MOST_BAD_LINES_SHOWN
    if more > 0:
        console.print(f"and {counted(more, 'more line')} not used; --json has all")


def print_profiles(console: Console, results: Sequence[Result]) -> None:
    """Where each tier's unit costs come from, and what had to be taken instead; what runs have in
    common is said once."""
    for tier, profile in results[0].profiles.items():
        console.print(f"profile of tier {tier}: {_named(profile)}")
        if unknown := perf_model_of(profile).unknown:
            what = " and ".join(_UNKNOWN[name] for name in unknown)
            console.print(f"  {what}: not known, counted as 0")
    notes = dict.fromkeys(note for result in results for note in result.notes)
    for note in (*beyond_lines([result.beyond for result in results]), *notes):
        console.print(note, markup=False)


def _print_definitions(console: Console, result: Result) -> None:
    """What the figures of a run are to be read with."""
    console.print(
        f"x: divided by what the same conversation takes alone on {result.alone_on}"
        f"{_other_gpus(result)}",
        markup=False,
    )
    console.print(f"SLO: {judged_by(result)}", markup=False)
    if result.attained is not None:
        console.print(f"{result.attained:.1%} of the conversations keep all these targets")
    if note := never_note([result]):
        console.print(note)


def _other_gpus(result: Result) -> str:
    """That another tier's GPU may be the faster one."""
    names = {profile.name for profile in result.profiles.values()}
    return "" if len(names) == 1 else "; on another tier's GPU a turn may take less (x below 1)"


def judged_by(result: Result) -> str:
    """What the targets are."""
    if result.slo is not None:
        return result.judged_by
    return f"5 times the mean of these (the paper's), not the map's slo; see --slo {MAPS_OWN}"


def never_note(results: Iterable[Result]) -> str:
    """What "never" means, where it is said."""
    summaries = [result.summary for result in results]
    figures = [each for one in summaries for each in (one.ttfet, one.last_turn_tbt, one.e2e)]
    has_never = any(each and not isfinite(each.geomean_normalised) for each in figures)
    return (
        "percentiles are of all conversations that arrived; never: that many were not answered"
        if has_never
        else ""
    )


def _print_counts(console: Console, result: Result) -> None:
    summary = result.summary
    outcomes = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items())
    num = counted(summary.num_conversations, "conversation")
    console.print(f"{num}: {outcomes}" if outcomes else num)
    for why, count in summary.unanswered_because.items():
        console.print(f"  {count} not answered: {why}")
    reasons = ", ".join(f"{count} {name}" for name, count in summary.turns_by_reason.items())
    turns = counted(summary.num_turns, "turn")
    console.print(f"{turns}: {reasons}" if reasons else turns)
    moved, rate = counted(result.num_kv_transfers, "KV transfer"), summary.output_tokens_per_s
    console.print(f"{moved}; {rate:.0f} output tokens/s over {summary.duration_s:.0f} s")


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
        "a conversation": energy.conversation_j,
        "a turn": energy.turn_j,
        "an output token": energy.output_token_j,
        "a counted token": energy.counted_token_j,
    }
    each = ", ".join(f"{joules:.4g} {name}" for name, joules in per.items() if joules is not None)
    console.print(f"joules (modelled): {each}")


def print_budget(console: Console, result: Result) -> None:
    """What the power controller made of the budgets, if it was asked to keep them."""
    budget = result.budget
    if budget is None:
        return
    named = "no power budget" if budget.power_budget_w is None else f"{budget.power_budget_w:,g} W"
    over = (
        ""
        if budget.power_budget_w is None
        else f"; more in {budget.num_over} of {budget.num_periods} s"
    )
    console.print(f"budget (modelled): {named}{over}; at most {budget.max_w:,.0f} W")
    target, taken = budget.energy_budget_j_per_output_token, _output_token_j(result)
    if target is not None and taken is not None:
        missed = f"missed by {taken / target - 1:.1%}" if taken > target else "kept"
        console.print(
            f"energy budget (modelled): {target:g} J an output token; {taken:.4g} taken: {missed}"
        )
    moves = ", ".join(f"{reason} {count}" for reason, count in budget.num_moves.items())
    caps = ", ".join(f"{tier} {watts:g} W" for tier, watts in budget.caps_w.items())
    console.print(f"moves: {moves or 'none'}; caps at the end: {caps}")
    if budget.is_infeasible:
        console.print("the least caps do not fit the budget")


def _output_token_j(result: Result) -> float | None:
    energy = result.summary.modelled_energy
    return None if energy is None else energy.output_token_j


def _short(seconds: float) -> str:
    if not isfinite(seconds):
        return "never"
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if isfinite(ratio) else "never"
