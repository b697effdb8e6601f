"""A plan's report needs nothing but itself, and says what its numbers are."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Option, Plan, analysed, make_plan
from conserve_sglang.profiles import shipped_profile
from conserve_sglang.report.fleet_drawing import Box, Group, fleet_svg
from conserve_sglang.report.plan_charts import front_of
from conserve_sglang.report.plan_choices import choices_of, is_drawn, joules_per_token
from conserve_sglang.report.plan_page import plan_page
from tests.planning.builders import a_request

VOID = {"meta", "br", "path", "rect", "circle"}


class Checker(HTMLParser):
    """Tags that match, and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.refers: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.refers += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data + " "


@cache
def a_plan() -> Plan:
    plan = make_plan(a_request(power_budget_w=700.0))
    assert isinstance(plan, Plan)
    return analysed(plan)


@cache
def read() -> tuple[str, Checker]:
    names = sorted({config.profile for config in a_plan().chosen.counts})
    text = plan_page(
        a_plan(), [shipped_profile(name) for name in names], "conserve-sglang plan <x>"
    )
    checker = Checker()
    checker.feed(text)
    checker.close()
    return text, checker


def test_it_is_well_formed_and_needs_no_network() -> None:
    text, checker = read()
    assert checker.open == []
    assert checker.refers == []
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert set(re.findall(r"https?://[^\"'<\s]+", text)) <= {"http://www.w3.org/2000/svg"} | set(
        re.findall(r"https?://[^\"'<\s]+", checker.words)
    )
    assert "url(" not in text
    assert "@import" not in text


def test_it_fits_light_and_dark_wide_and_narrow() -> None:
    text, checker = read()
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert text.count('class="wide"') == text.count('class="narrow"') >= 3
    assert checker.seen.count("svg") >= 8


@pytest.mark.parametrize(
    "words",
    [
        "The map", "Margins, and what binds", "The choice, and the runners-up", "Power over time",
        "If the load is another", "If a profile is wrong", "Where the numbers come from",
        "Against one kind of GPU, and against no caps", "Pareto front", "<x>",
        "a40 alone", "l4 alone", "no caps",
    ],
)  # fmt: skip
def test_it_has_every_part(words: str) -> None:
    assert words in read()[1].words


def test_estimates_and_models_are_called_so() -> None:
    words = read()[1].words
    assert "estimated" in words
    assert "published" in words or "measured" in words
    assert "tokens per joule, modelled" in words
    assert "mean power, modelled" in words
    assert "Every joule and watt on this page is modelled" in words


def test_the_front_is_what_no_option_beats() -> None:
    plan = a_plan()
    front = front_of(plan.options)
    assert front
    for option in plan.options:
        beaten = [
            one
            for one in front
            if one.score.ttfet_s <= option.score.ttfet_s
            and joules_per_token(one) <= joules_per_token(option)
        ]
        assert beaten, option
    assert all(not dominates(one, other) for one in plan.options for other in front)


def dominates(one: Option, other: Option) -> bool:
    return one.score.ttfet_s < other.score.ttfet_s and joules_per_token(one) < joules_per_token(
        other
    )


def test_a_plan_without_analysis_is_shown_too() -> None:
    bare = replace(a_plan(), load_sweep=(), doubts=(), comparisons=())
    text = plan_page(bare, [], "x")
    assert "If the load is another" not in text
    assert "The map" in text


def test_each_row_names_its_columns_where_it_is_a_block_on_a_narrow_screen() -> None:
    text, _ = read()
    assert 'data-name="TTFET p95, s"' in text
    assert "content:attr(data-name)" in text
    assert text.count("<table") == text.count("<thead>") >= 4


def test_rows_and_points_have_the_same_letters() -> None:
    text, _ = read()
    of_rows = re.findall(r'<span class="badge key">(.)</span>', text)
    of_points = {
        letter
        for words in re.findall(r'<text class="tag"[^>]*>([^<]*)<', text)
        for letter in words.split(", ")
    }
    assert of_rows[0] == "A"
    assert len(set(of_rows)) == len(of_rows)
    assert of_points <= set(of_rows)
    unending = {one.letter for one in choices_of(a_plan()) if not is_drawn(one.option)}
    assert set(of_rows) - of_points == unending - {""}


def test_marks_of_text_files_are_not_shown_raw() -> None:
    text, checker = read()
    assert "`" not in text
    assert "+-" not in checker.words
    assert "see bench/estimator.py" in checker.words


def test_a_large_fleet_is_drawn_in_part_and_counted() -> None:
    group = Group(name="a decode", gpu="L4", role=Role.DECODE, count=500, tp=4, knobs="cap 50 W")
    text = fleet_svg([Box(host="h", groups=[group], num_free=3)], 400)
    assert "500 x L4 of 4 GPUs" in text
    assert "and 492 more" in text
