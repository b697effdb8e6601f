"""A trace's shape as text, as drawings and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conserve_sglang.traces import BadLine, Trace
from conserve_sglang.traces.source import NOTHING_SHARED
from conserve_sglang.workload import Bin, Histogram, Shape, shares_nothing
from conserve_sglang.workload.histogram import short

from .words import counted

MOST_BAD_LINES_SHOWN = 10
BAR_CELLS = 24
LABEL_CELLS = 13
THIN = 0.01
EIGHTHS = " ▏▎▍▌▋▊▉█"
SIDE_BY_SIDE_COLUMNS = 110


def as_document(trace: Trace, shape: Shape, histograms: Sequence[Histogram]) -> dict[str, Any]:
    """Plain JSON values; what the file does not tell is null."""
    unknown = [] if trace.has_arrivals else ["span_s"]
    if not trace.has_gaps or shape.gap_s is None:
        unknown += ["gap_s", "gap_over_60_s_share", "gap_over_300_s_share"]
    if shape.append_tokens is None:
        unknown += ["large_append_share", "large_append_work"]
    return {
        "unit": trace.unit,
        "num_lines": trace.num_lines,
        "bad_lines": [asdict(line) for line in trace.bad_lines],
        "not_read": list(trace.not_read),
        "notes": list(_notes(trace)),
        "shape": {**asdict(shape), **dict.fromkeys(unknown)},
        "histograms": [asdict(histogram) for histogram in histograms],
    }


def print_shape(name: str, trace: Trace, shape: Shape, histograms: Sequence[Histogram]) -> None:
    """Percentiles, shares, drawings, and what was not used."""
    console = Console()
    if shape.num_conversations:
        console.print(_percentiles(name, trace, shape))
        _print_shares(console, trace, shape)
        for note in _notes(trace):
            console.print(note, markup=False)
        _print_histograms(console, histograms)
    print_bad_lines(console, trace)
    for told in trace.not_read:
        console.print(f"not read: {told}", markup=False)


def _notes(trace: Trace) -> Iterator[str]:
    """What the figures are to be read with."""
    if trace.about_gaps:
        yield f"tool gaps of this file: {trace.about_gaps}"
    if shares_nothing(trace.conversations):
        yield NOTHING_SHARED


def print_bad_lines(console: Console, trace: Trace) -> None:
    """How many lines were not used, and the first of them with why."""
    console.print(f"{len(trace.bad_lines)} of {trace.num_lines} {trace.unit} could not be used")
    for line in trace.bad_lines[:MOST_BAD_LINES_SHOWN]:
        console.print(f"  {place_of(line)}: {line.why}", markup=False)
    if len(trace.bad_lines) > MOST_BAD_LINES_SHOWN:
        console.print(f"  and {len(trace.bad_lines) - MOST_BAD_LINES_SHOWN} more; --json has all")


def place_of(line: BadLine) -> str:
    """Where a bad line stands."""
    return f"{line.file}, line {line.number}" if line.file else f"line {line.number}"


def _percentiles(name: str, trace: Trace, shape: Shape) -> Table:
    title = f"{name}: {counted(shape.num_conversations, 'conversation')}"
    table = Table(title=Text(title))
    for column in ("", "p5", "p50", "p95", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    spreads = {
        "turns of a conversation": shape.turns_per_conversation,
        "prompt of turn 1, tokens": shape.first_input_tokens,
        "prompt, tokens": shape.input_tokens,
        "append, tokens": shape.append_tokens,
        "output, tokens": shape.output_tokens,
        "tool gap, s": shape.gap_s if trace.has_gaps else None,
    }
    for what, spread in spreads.items():
        if spread is not None:
            values = (spread.p5, spread.p50, spread.p95, spread.p99, spread.max)
            table.add_row(
                what, *(f"{value:,.4g}" if value < 10 else f"{value:,.0f}" for value in values)
            )
    return table


def _print_shares(console: Console, trace: Trace, shape: Shape) -> None:
    over = f"arriving over {shape.span_s:,.0f} s"
    when = over if trace.has_arrivals else "no arrival times in this file"
    console.print(f"{counted(shape.num_turns, 'turn')}, {when}")
    console.print(f"turn 1 holds {shape.first_turn_share:.1%} of the uncached prefill tokens")
    if shape.append_tokens is None:
        console.print("no conversation has a later turn: no appends, no tool gaps")
        return
    console.print(
        f"{shape.large_append_share:.1%} of later turns append 2,048 tokens or more:"
        f" {shape.large_append_work:.1%} of later prefill"
    )
    if not trace.has_gaps:
        console.print("no tool gaps in this file")
        return
    console.print(
        f"{shape.gap_over_60_s_share:.1%} of tool gaps are longer than 60 s,"
        f" {shape.gap_over_300_s_share:.1%} than 300 s"
    )


def _print_histograms(console: Console, histograms: Sequence[Histogram]) -> None:
    drawn = [_drawing(histogram) for histogram in histograms if histogram.bins]
    num_columns = 2 if console.width >= SIDE_BY_SIDE_COLUMNS else 1
    grid = Table.grid(padding=(1, 4, 0, 0))
    for _ in range(num_columns):
        grid.add_column()
    for index in range(0, len(drawn), num_columns):
        grid.add_row(*drawn[index : index + num_columns])
    console.print(grid)
    console.print()


def _drawing(histogram: Histogram) -> Table:
    """One bar a bin, as long as its share of the largest bin's."""
    total, rows = histogram.num_values, list(_rows(histogram.bins))
    most = max(count for _, count in rows)
    unit = "" if histogram.unit == "turns" else f", {histogram.unit}"
    title = Text(f"{histogram.name}{unit}", style="bold")
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", width=LABEL_CELLS)
    table.add_column(width=BAR_CELLS)
    table.add_column(justify="right", width=6)
    for label, count in rows:
        share = "" if not count else "<0.1%" if count / total < 0.001 else f"{count / total:.1%}"
        table.add_row(label, Text(_bar(count / most), style="cyan"), share)
    return table


def _rows(bins: Sequence[Bin]) -> Iterator[tuple[str, int]]:
    """A label and a count each; thin ends are drawn together."""
    first, last = _thick(bins), len(bins) - _thick(bins[::-1])
    if first:
        yield f"below {short(bins[first].low)}", sum(found.count for found in bins[:first])
    for found in bins[first:last]:
        yield f"{short(found.low)} - {short(found.high)}", found.count
    if last < len(bins):
        yield f"{short(bins[last].low)} and more", sum(found.count for found in bins[last:])


def _thick(bins: Sequence[Bin]) -> int:
    """How many bins at the beginning hold less than a hundredth together, if more than one."""
    total, so_far = sum(found.count for found in bins), 0
    for index, found in enumerate(bins):
        so_far += found.count
        if so_far > THIN * total:
            return index if index > 1 else 0
    return 0


def _bar(share: float) -> str:
    eighths = max(1 if share else 0, round(share * BAR_CELLS * 8))
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
