"""Charts are well-formed drawings whose points lie where their values are."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Literal
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.report.chart import Bar, Chart, Mark, Series, bars, svg
from conserve_sglang.report.scale import Scale, extent, short, tick_labels, ticks
from conserve_sglang.report.theme import SERIES, drawing, palette, standalone

SVG = "{http://www.w3.org/2000/svg}"
LINE = Series(name="a < b", points=[(0, 1), (1, 3), (2, 2)], color=1, kind="marked", hints=["x&y"])
OTHER = Series(name="c", points=[(0, 2), (2, 4)], color=2)


def a_chart(*series: Series, **more: object) -> Chart:
    return Chart(title="T & U", x_label="x", y_label="y", series=series, **more)  # type: ignore[arg-type]


def circles(text: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(text)
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter(f"{SVG}circle")]


def test_points_lie_in_the_order_of_their_values_inside_the_drawing() -> None:
    (x0, y0), (x1, y1), (x2, y2) = circles(svg(a_chart(LINE, OTHER), 400, 200))
    assert 0 < x0 < x1 < x2 < 400
    assert 0 < y1 < y2 < y0 < 200  # larger values are higher up


def test_words_are_escaped_and_told_to_those_who_cannot_see() -> None:
    text = svg(a_chart(LINE, OTHER), 400)
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"T & U", "a < b", "c", "x", "y"} <= set(words)
    assert root.find(f"{SVG}title") is not None
    assert root.attrib["role"] == "img"


def test_a_target_beyond_the_points_is_inside_the_drawing() -> None:
    text = svg(a_chart(LINE, marks=[Mark(axis="y", value=50.0, label="limit")]), 400, 200)
    (mark,) = re.findall(r'class="mark" d="M[\d.]+ ([\d.]+)H', text)
    assert 0 < float(mark) < min(y for _, y in circles(text))


@pytest.mark.parametrize("axis", ["x", "y"])
def test_words_of_a_mark_stand_above_the_drawing(axis: Literal["x", "y"]) -> None:
    text = svg(a_chart(LINE, marks=[Mark(axis=axis, value=2.0, label="target 2 s")]), 400, 200)
    (word,) = (y for y, words in words_of(text) if words == "target 2 s")
    assert word < min(float(y) for y in re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H', text))


def words_of(text: str) -> list[tuple[float, str]]:
    root = ElementTree.fromstring(text)
    return [(float(one.attrib["y"]), one.text or "") for one in root.iter(f"{SVG}text")]


def test_a_name_that_is_wider_than_the_drawing_goes_on_in_the_next_line() -> None:
    long = replace(LINE, name=" = ".join(["work-conserving"] * 5))
    words = words_of(svg(a_chart(long, OTHER), 300))
    assert all(len(one) * 6.3 < 300 for _, one in words)
    assert sum("work-conserving" in one for _, one in words) > 1


def test_ticks_across_keep_their_distance() -> None:
    far = Series(name="", points=[(123_456_000.0, 1), (123_456_010.0, 2)], color=1)
    text = svg(a_chart(far), 400)
    places = [
        (float(x), len(words))
        for x, words in re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]*)', text)
    ]
    assert len(places) >= 2
    for (x, size), (next_x, next_size) in pairwise(places):
        assert next_x - x > 6 * (size + next_size) / 2


def test_areas_stand_on_each_other() -> None:
    low = Series(name="low", points=[(0, 1), (1, 1)], color=1, kind="area")
    high = Series(name="high", points=[(0, 3), (1, 2)], color=2, kind="area", base=[1, 1])
    paths = re.findall(r'class="area f-\d" d="([^"]+)"', svg(a_chart(low, high), 400, 200))
    assert len(paths) == 2
    tops = {point.split()[1] for point in re.split("[ML]", paths[0].rstrip("Z"))[1:3]}
    assert tops <= {point.split()[1] for point in re.split("[ML]", paths[1].rstrip("Z"))[3:]}


def test_a_file_of_its_own_brings_its_colours() -> None:
    text = svg(a_chart(LINE), 400, style=standalone())
    assert "prefers-color-scheme:dark" in text
    ElementTree.fromstring(text)


def test_every_colour_of_a_series_is_there_in_light_and_dark() -> None:
    for name in SERIES:
        assert palette().count(f"--c-{name}:") == 2
        assert f".f-{name}{{" in drawing()


def test_bars_are_as_long_as_their_values() -> None:
    text = bars("t", [Bar(name="a", value=2, note="2"), Bar(name="b", value=1, note="1")], 400)
    one, other = (
        float(width) for width in re.findall(r'<rect class="f-1"[^>]*width="([\d.]+)"', text)
    )
    assert one == pytest.approx(2 * other, rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.32, [0.1, 0.15, 0.2, 0.25, 0.3]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0.01538, 0.01543, ["0.01538", "0.01539", "0.01540", "0.01541", "0.01542", "0.01543"]),
        (0, 30_000, ["0", "10,000", "20,000", "30,000"]),
        (2.5e6, 2.7e6, ["2.50M", "2.55M", "2.60M", "2.65M", "2.70M"]),
        (0, 5e-5, ["0", "1e-05", "2e-05", "3e-05", "4e-05", "5e-05"]),
        (5, 5, ["5"]),
    ],
)
def test_ticks_have_the_digits_that_they_need(low: float, high: float, expected: list[str]) -> None:
    assert tick_labels(ticks(low, high)) == expected


@given(
    low=st.floats(-1e9, 1e9),
    exponent=st.floats(-7, 9),
    about=st.integers(3, 10),
)
def test_no_two_ticks_have_the_same_words(low: float, exponent: float, about: int) -> None:
    values = ticks(low, low + max(10**exponent, abs(low) * 1e-6), about)
    words = tick_labels(values)
    assert len(set(words)) == len(words) == len(values) > 1


def test_extents_leave_air_and_never_are_empty() -> None:
    assert extent([], from_zero=True) == (0.0, 1.0)
    assert extent([math.inf, math.nan], from_zero=False) == (0.0, 1.0)
    low, high = extent([3.0, 3.0], from_zero=False)
    assert low < 3.0 < high
    assert extent([2.0, 4.0], from_zero=True)[0] == 0.0
    assert Scale(0, 10, 100, 0).at(2.5) == 75


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.012345, "0.0123"),
        (1234, "1,234"),
        (25_300, "25,300"),
        (999.6, "1,000"),
        (131_072, "131,072"),
        (3.2e6, "3.2M"),
        (1234e6, "1.23G"),
        (math.inf, "never"),
    ],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert short(value) == expected
