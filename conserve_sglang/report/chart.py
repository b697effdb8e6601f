"""Charts as SVG text: lines, dots, areas and bars over two axes. No script, no network.

Colours are CSS variables (see `theme`), so one drawing fits a light and a dark page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from conserve_sglang.report.scale import Scale, extent, short, ticks

CHARACTER = 6.3
"""Pixels of an average character at 11 px."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour (`color`: a number from 1, or a name of the theme). `hints`: what a
    pointer over each point is told. An area spans from `base` (else the axis) to its points. A
    dashed line tells two of one colour apart."""

    name: str
    points: Sequence[Point]
    color: int | str
    kind: Literal["line", "dots", "area", "marked"] = "line"
    base: Sequence[float] = ()
    hints: Sequence[str] = ()
    is_large: bool = False
    is_dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A straight line at a value of one axis, with words."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw. `description` is for those who cannot see it. `y_to`: the y axis shows at least
    up to there."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    x_from_zero: bool = False
    y_from_zero: bool = True
    y_to: float | None = None
    description: str = ""
    x_ticks: Sequence[tuple[float, str]] = field(default=())


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area in pixels, and its two scales."""

    x: Scale
    y: Scale
    width: float
    height: float


def svg(chart: Chart, width: int = 640, height: int = 300, style: str = "") -> str:
    """The chart's text; `style` goes into a style element of its own, for a file that stands
    alone."""
    parts = list(_parts(chart, width, height))
    told = escape(chart.description or chart.title)
    styled = f"<style>{style}</style>" if style else ""
    background = f'<rect class="page" width="{width}" height="{height}"/>' if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' class="chart"><title>{told}</title>{styled}{background}{"".join(parts)}</svg>'
    )


def _parts(chart: Chart, width: int, height: int) -> Iterator[str]:
    legend, legend_height = _legend(chart, width)
    frame = _frame(chart, width, height, 22 + legend_height)
    yield text(chart.title, 2, 13, "heading")
    yield legend
    yield from _axes(chart, frame)
    for series in chart.series:
        yield from _series(series, frame)
    for mark in chart.marks:
        yield from _mark(mark, frame)


def _frame(chart: Chart, width: int, height: int, top: float) -> Frame:
    points = [point for series in chart.series for point in series.points]
    bases = [base for series in chart.series for base in series.base]
    x_marks = [mark.value for mark in chart.marks if mark.axis == "x"]
    y_marks = [mark.value for mark in chart.marks if mark.axis == "y"]
    xs = extent([*(x for x, _ in points), *x_marks], chart.x_from_zero)
    reach = [] if chart.y_to is None else [chart.y_to]
    ys = extent([*(y for _, y in points), *bases, *y_marks, *reach], chart.y_from_zero)
    if any(series.kind == "area" for series in chart.series):
        xs = min(x for x, _ in points), max(x for x, _ in points)
    left = 14 + CHARACTER * max(len(short(tick)) for tick in ticks(*ys))
    bottom = height - 36
    return Frame(Scale(*xs, left, width - 14), Scale(*ys, bottom, top + 8), width, height)


def text(words: str, x: float, y: float, kind: str = "label", anchor: str = "start") -> str:
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _legend(chart: Chart, width: int) -> tuple[str, float]:
    """Names in rows beside their colour; none for a single series."""
    named = [series for series in chart.series if series.name]
    if len(named) < 2:
        return "", 0.0
    parts, x, y = [], 2.0, 29.0
    for series in named:
        needed = 18 + CHARACTER * len(series.name) + 12
        if x + needed > width and x > 2:
            x, y = 2.0, y + 16
        parts.append(_sample(series, x, y))
        parts.append(text(series.name, x + 16, y))
        x += needed
    return "".join(parts), y - 15


def _sample(series: Series, x: float, y: float) -> str:
    """What a series looks like, before its name."""
    if series.is_dashed:
        line = f"M{x:.1f} {y - 3.5:.1f}h11"
        return f'<path class="line dashed s-{series.color}" d="{line}"/>'
    box = f'x="{x:.1f}" y="{y - 8:.1f}" width="11" height="9" rx="2"'
    return f'<rect class="f-{series.color}" {box}/>'


def _axes(chart: Chart, frame: Frame) -> Iterator[str]:
    x, y = frame.x, frame.y
    for value in ticks(y.low, y.high, max(3, int((y.start - y.end) / 45))):
        at = y.at(value)
        yield f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>'
        yield text(short(value), x.start - 6, at + 4, anchor="end")
    wanted = chart.x_ticks or [
        (value, short(value)) for value in ticks(x.low, x.high, max(3, int((x.end - x.start) / 60)))
    ]
    for value, words in wanted:
        yield text(words, x.at(value), y.start + 15, anchor="middle")
        yield f'<path class="axis" d="M{x.at(value):.1f} {y.start:.1f}v4"/>'
    yield f'<path class="axis" d="M{x.start:.1f} {y.start:.1f}H{x.end:.1f}"/>'
    yield text(chart.x_label, x.end, frame.height - 5, anchor="end")
    yield text(chart.y_label, 2, frame.height - 5)


def _series(series: Series, frame: Frame) -> Iterator[str]:
    places = [(frame.x.at(x), frame.y.at(y)) for x, y in series.points]
    if series.kind == "area":
        floor = [frame.y.at(value) for value in series.base] or [frame.y.start] * len(places)
        back = [(x, low) for (x, _), low in zip(places, floor, strict=True)]
        yield f'<path class="area f-{series.color}" d="{_path([*places, *reversed(back)])}Z"/>'
        return
    if series.kind in ("line", "marked"):
        dashed = " dashed" if series.is_dashed else ""
        yield f'<path class="line{dashed} s-{series.color}" d="{_path(places)}"/>'
    if series.kind in ("dots", "marked"):
        radius = 7 if series.is_large else 4.5
        for number, (x, y) in enumerate(places):
            hint = series.hints[number] if number < len(series.hints) else ""
            told = f"<title>{escape(hint)}</title>" if hint else ""
            yield (
                f'<circle class="dot f-{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"{told}</circle>"
            )


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _mark(mark: Mark, frame: Frame) -> Iterator[str]:
    x, y = frame.x, frame.y
    if mark.axis == "y":
        at = y.at(mark.value)
        yield f'<path class="mark" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>'
        yield text(mark.label, x.end - 2, at - 5, "marked", "end")
        return
    at = x.at(mark.value)
    yield f'<path class="mark" d="M{at:.1f} {y.start:.1f}V{y.end:.1f}"/>'
    is_right = at > (x.start + x.end) / 2
    anchor = "end" if is_right else "start"
    yield text(mark.label, at - 5 if is_right else at + 5, y.start - 7, "marked", anchor)


def stacked(lines: Mapping[str, Sequence[Point]]) -> list[Series]:
    """Areas by name, each on top of those before; all have points at the same places."""
    series: list[Series] = []
    base: list[float] = []
    for number, (name, points) in enumerate(lines.items()):
        base = base or [0.0] * len(points)
        tops = [low + value for low, (_, value) in zip(base, points, strict=True)]
        places = [(at, top) for (at, _), top in zip(points, tops, strict=True)]
        color = number % 6 + 1
        series.append(Series(name=name, points=places, color=color, kind="area", base=base))
        base = tops
    return series


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of a bar chart; `note` stands behind the bar."""

    name: str
    value: float
    note: str
    color: int | str = 1


def bars(title: str, rows: Sequence[Bar], width: int = 640, style: str = "") -> str:
    """Horizontal bars from 0, each with its name above it, so that long names fit."""
    height = 26 + 40 * len(rows)
    most = max((row.value for row in rows), default=0.0) or 1.0
    room = width - 10 - CHARACTER * max((len(row.note) for row in rows), default=0) - 12
    parts = [text(title, 2, 13, "heading")]
    for number, row in enumerate(rows):
        y = 26 + 40 * number
        length = max(1.0, room * row.value / most)
        parts.append(text(row.name, 2, y + 11))
        parts.append(
            f'<rect class="f-{row.color}" x="2" y="{y + 16}" width="{length:.1f}" height="14"'
            ' rx="3"/>'
        )
        parts.append(text(row.note, 2 + length + 8, y + 27, "value"))
    styled = f"<style>{style}</style>" if style else ""
    background = f'<rect class="page" width="{width}" height="{height}"/>' if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' class="chart"><title>{escape(title)}</title>{styled}{background}{"".join(parts)}</svg>'
    )
