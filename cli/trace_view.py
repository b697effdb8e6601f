"""A trace's shape as text and as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conserve_sglang.traces import Trace
from conserve_sglang.workload import Shape

MOST_BAD_LINES_SHOWN = 10


def as_document(trace: Trace, shape: Shape) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "num_lines": trace.num_lines,
        "bad_lines": [asdict(line) for line in trace.bad_lines],
        "shape": asdict(shape),
    }


def print_shape(file: Path, trace: Trace, shape: Shape) -> None:
    """Percentiles, shares, and the lines that were not used."""
    console = Console()
    table = Table(title=f"{file.name}: {shape.num_conversations} conversations")
    for column in ("", "p5", "p50", "p95", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    spreads = {
        "turns of a conversation": shape.turns_per_conversation,
        "prompt of turn 1, tokens": shape.first_input_tokens,
        "prompt, tokens": shape.input_tokens,
        "append, tokens": shape.append_tokens,
        "output, tokens": shape.output_tokens,
        "tool gap, s": shape.gap_s,
    }
    for name, spread in spreads.items():
        if spread is not None:
            values = (spread.p5, spread.p50, spread.p95, spread.p99, spread.max)
            table.add_row(
                name, *(f"{value:,.4g}" if value < 10 else f"{value:,.0f}" for value in values)
            )
    console.print(table)
    console.print(f"{shape.num_turns} turns, arriving over {shape.span_s:,.0f} s")
    console.print(f"turn 1 holds {shape.first_turn_share:.1%} of the uncached prefill tokens")
    console.print(
        f"{shape.large_append_share:.1%} of later turns append 2,048 tokens or more:"
        f" {shape.large_append_work:.1%} of later prefill"
    )
    console.print(
        f"{shape.gap_over_60_s_share:.1%} of tool gaps are longer than 60 s,"
        f" {shape.gap_over_300_s_share:.1%} than 300 s"
    )
    console.print(f"{len(trace.bad_lines)} of {trace.num_lines} lines could not be used")
    for line in trace.bad_lines[:MOST_BAD_LINES_SHOWN]:
        console.print(f"  line {line.number}: {line.why}", markup=False)
    if len(trace.bad_lines) > MOST_BAD_LINES_SHOWN:
        console.print(f"  and {len(trace.bad_lines) - MOST_BAD_LINES_SHOWN} more; --json has all")
