"""Charts as SVG text: lines, dots, areas and bars over two axes. No script, no network.

Colours are CSS variables (see `theme`), so one drawing fits a light and a dark page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap
from typing import Literal

from conserve_sglang.report.scale import Scale, extent, tick_labels, ticks
from conserve_sglang.report.tags import tags

CHARACTER = 6.3
"""Pixels of an average character at 11 px."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour (`color`: a number from 1, or a name of the theme). `hints`: what a
    pointer over each point is told; `tags`: what stands beside it, if it is a dot. An area spans
    from `base` (else the axis) to its points. A dashed line tells two of one colour apart."""

    name: str
    points: Sequence[Point]
    color: int | str
    kind: Literal["line", "dots", "area", "marked"] = "line"
    base: Sequence[float] = ()
    hints: Sequence[str] = ()
    tags: Sequence[str] = ()
    is_large: bool = False
    is_dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A straight line at a value of one axis; the legend has its words."""

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
    """The plotting area in pixels: its two scales, and their ticks with their words."""

    x: Scale
    y: Scale
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
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
        yield _mark(mark, frame)
    yield from _tags(chart, frame)


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
    top += 22 if chart.y_label else 8
    bottom = height - 36
    rows = ticks(*ys, max(3, int((bottom - top) / 34)))
    y_ticks = list(zip(rows, tick_labels(rows), strict=True))
    left = 14 + CHARACTER * max(len(words) for _, words in y_ticks)
    x = Scale(*xs, left, width - 14)
    x_ticks = chart.x_ticks or _apart(x)
    return Frame(x, Scale(*ys, bottom, top), x_ticks, y_ticks, width, height)


def _apart(x: Scale) -> list[tuple[float, str]]:
    """As many ticks as have room for their words."""
    found: list[tuple[float, str]] = []
    for about in range(max(2, int((x.end - x.start) / 60)), 0, -1):
        values = ticks(x.low, x.high, about)
        found = list(zip(values, tick_labels(values), strict=True))
        widest = CHARACTER * max((len(words) for _, words in found), default=0)
        if len(found) < 2 or x.at(values[1]) - x.at(values[0]) >= widest + 10:
            break
    return found


def text(words: str, x: float, y: float, kind: str = "label", anchor: str = "start") -> str:
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _legend(chart: Chart, width: int) -> tuple[str, float]:
    """Names in rows beside their colour, then those of marks."""
    shown: list[Series | Mark] = [*(series for series in chart.series if series.name), *chart.marks]
    parts, x, y = [], 2.0, 29.0
    for one in shown:
        name = one.name if isinstance(one, Series) else one.label
        lines = wrap(name, max(8, int((width - 20) / CHARACTER)), break_on_hyphens=False)
        needed = 18 + CHARACTER * max(map(len, lines)) + 12
        if x + needed - 12 > width and x > 2:
            x, y = 2.0, y + 16
        parts.append(_sample(one, x, y))
        for number, line in enumerate(lines):
            y += 14 if number else 0
            parts.append(text(line, x + 16, y))
        x += needed
    return "".join(parts), y - 15 if shown else 0.0


def _sample(one: Series | Mark, x: float, y: float) -> str:
    """What a series or a mark looks like, before its name."""
    if isinstance(one, Mark):
        line = f"M{x + 6:.1f} {y - 10:.1f}v13" if one.axis == "x" else f"M{x:.1f} {y - 3.5:.1f}h12"
        return f'<path class="mark" d="{line}"/>'
    if one.kind == "line" or one.is_dashed:
        dashed = " dashed" if one.is_dashed else ""
        line = f"M{x:.1f} {y - 3.5:.1f}h12"
        return f'<path class="line{dashed} s-{one.color}" d="{line}"/>'
    box = f'x="{x:.1f}" y="{y - 8:.1f}" width="11" height="9" rx="2"'
    return f'<rect class="f-{one.color}" {box}/>'


def _axes(chart: Chart, frame: Frame) -> Iterator[str]:
    x, y = frame.x, frame.y
    for value, words in frame.y_ticks:
        at = y.at(value)
        yield f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>'
        yield text(words, x.start - 6, at + 4, anchor="end")
    for value, words in frame.x_ticks:
        half = CHARACTER * len(words) / 2
        place = min(x.at(value), frame.width - half - 1)
        yield text(words, place, y.start + 15, anchor="middle")
        yield f'<path class="axis" d="M{x.at(value):.1f} {y.start:.1f}v4"/>'
    yield f'<path class="axis" d="M{x.start:.1f} {y.start:.1f}H{x.end:.1f}"/>'
    yield text(chart.x_label, x.end, frame.height - 5, anchor="end")
    yield text(chart.y_label, 2, y.end - 11)


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
        radius = _radius(series)
        for number, (x, y) in enumerate(places):
            hint = series.hints[number] if number < len(series.hints) else ""
            told = f"<title>{escape(hint)}</title>" if hint else ""
            yield (
                f'<circle class="dot f-{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"{told}</circle>"
            )


def _radius(series: Series) -> float:
    return 7 if series.is_large else 4.5


def _tags(chart: Chart, frame: Frame) -> Iterator[str]:
    """Words beside dots, clear of all that is drawn."""
    x, y = frame.x, frame.y
    points, lines = [], []
    for series in chart.series:
        places = [(x.at(across), y.at(up)) for across, up in series.points]
        if series.kind != "dots":
            lines.append(places)
            continue
        words = [*series.tags, *[""] * (len(places) - len(series.tags))]
        points += [(place, _radius(series), one) for place, one in zip(places, words, strict=True)]
    for mark in chart.marks:
        at = x.at(mark.value) if mark.axis == "x" else y.at(mark.value)
        across = [(at, y.start), (at, y.end)]
        lines.append(across if mark.axis == "x" else [(x.start, at), (x.end, at)])
    for tag in tags(points, lines, frame.width, y.start):
        yield text(tag.words, tag.x, tag.y, "tag", "middle")


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _mark(mark: Mark, frame: Frame) -> str:
    x, y = frame.x, frame.y
    line = (
        f"M{x.start:.1f} {y.at(mark.value):.1f}H{x.end:.1f}"
        if mark.axis == "y"
        else f"M{x.at(mark.value):.1f} {y.start:.1f}V{y.end:.1f}"
    )
    return f'<path class="mark" d="{line}"/>'


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
        if row.value > 0:
            box = f'x="2" y="{y + 16}" width="{length:.1f}" height="14" rx="3"'
            parts.append(f'<rect class="f-{row.color}" {box}/>')
        parts.append(text(row.note, 2 + length + 8, y + 27, "value"))
    styled = f"<style>{style}</style>" if style else ""
    background = f'<rect class="page" width="{width}" height="{height}"/>' if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' class="chart"><title>{escape(title)}</title>{styled}{background}{"".join(parts)}</svg>'
    )
