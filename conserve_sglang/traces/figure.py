"""A workload drawn to a file: its histograms, six to a page. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.workload import Histogram, Shape, Spread
from conserve_sglang.workload.histogram import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
INK, PALE, BAR = "#1f2933", "#d9dee3", "#2f6f9f"
NUM_COLUMNS = 3


def draw(path: Path, title: str, shape: Shape, histograms: Sequence[Histogram]) -> None:
    """Draw a workload's histograms, with medians and 95th percentiles, to an SVG, PNG or PDF file.

    Raises ConfigError for another kind of file, for one that cannot be written, and where
    matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a figure's name ends in one of {', '.join(SUFFIXES)}")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib: pip install 'conserve-sglang[report]'"
        ) from error
    spreads = _spreads(shape)
    drawn = [histogram for histogram in histograms if histogram.bins]
    num_rows = -(-len(drawn) // NUM_COLUMNS)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "conserve", "font.size": 9}):
        figure = Figure(figsize=(11.5, 0.8 + 2.7 * max(1, num_rows)), layout="constrained")
        figure.suptitle(f"{title}: {_counts(shape)}", color=INK, fontsize=11)
        for index, histogram in enumerate(drawn):
            axes = figure.add_subplot(num_rows, NUM_COLUMNS, index + 1)
            _draw_one(axes, histogram, spreads[histogram.name])
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _counts(shape: Shape) -> str:
    return (
        f"{shape.num_conversations:,} conversations, {shape.num_turns:,} turns; turn 1 holds"
        f" {shape.first_turn_share:.0%} of the uncached prefill"
    )


def _spreads(shape: Shape) -> dict[str, Spread | None]:
    return {
        "turns of a conversation": shape.turns_per_conversation,
        "prompt of turn 1": shape.first_input_tokens,
        "prompt": shape.input_tokens,
        "append": shape.append_tokens,
        "output": shape.output_tokens,
        "tool gap": shape.gap_s,
    }


def _draw_one(axes: "Axes", histogram: Histogram, spread: Spread | None) -> None:
    bins, total = histogram.bins, histogram.num_values
    axes.bar(range(len(bins)), [100 * found.count / total for found in bins], 1.0, align="edge",
             color=BAR, edgecolor="white", linewidth=0.8)  # fmt: skip
    marks = [short(found.low) for found in bins] + [short(bins[-1].high)]
    step = 1 + len(marks) // 9
    axes.set_xticks(range(0, len(marks), step), marks[::step])
    axes.set_xlim(-0.2, len(bins) + 0.2)
    unit = "" if histogram.unit == "turns" else f", {histogram.unit}"
    figures = "" if spread is None else f"p50 {_figure(spread.p50)}, p95 {_figure(spread.p95)}"
    axes.set_title(f"{histogram.name}{unit}", loc="left", color=INK, fontsize=9.5)
    axes.set_title(figures, loc="right", color=INK, fontsize=8.5)
    axes.set_ylabel("% of them", color=INK)
    axes.yaxis.grid(True, color=PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(value: float) -> str:
    return f"{value:,.3g}" if value < 10 else f"{value:,.0f}"
