"""Figures of runs are files that stand alone, one line a policy."""

import re
from dataclasses import replace
from math import inf
from xml.etree import ElementTree

import pytest

from conserve_sglang.report.sim_figures import RunFigures, figures

RUN = RunFigures(
    policy="conserve",
    ttfet_s=[3.0, 1.0, 2.0],
    last_turn_tbt_s=[0.02, 0.03],
    e2e_s=[5.0, 4.0, 6.0],
    tokens_per_joule=100.0,
    watts={"fast": [(1.0, 200.0), (2.0, 250.0)], "small": [(1.0, 50.0), (2.0, 60.0)]},
)


def test_each_latency_and_each_policys_power_has_a_file() -> None:
    found = figures([RUN, replace(RUN, policy="colocated")])
    assert set(found) == {
        "ttfet.svg", "last_turn_tbt.svg", "e2e.svg", "tokens_per_joule.svg",
        "power_conserve.svg", "power_colocated.svg",
    }  # fmt: skip
    for text in found.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "modelled" in text
        assert "prefers-color-scheme:dark" in text
    assert "conserve" in found["ttfet.svg"]
    assert "colocated" in found["ttfet.svg"]


def test_more_policies_than_colours_are_told_apart() -> None:
    runs = [replace(RUN, policy=f"p{n}", watts={}, ttfet_s=[n, 2.0 * n]) for n in range(1, 13)]
    text = figures(runs)["ttfet.svg"]
    drawn = re.findall(r'class="(line [^"]*)" d="M[^"]*L', text)
    assert len(set(drawn)) == len(drawn) == 12


def test_curves_that_are_the_same_are_one_and_have_all_their_names() -> None:
    slower = replace(RUN, policy="stock-pd", ttfet_s=[4.0, 1.0, 2.0])
    found = figures([RUN, slower, replace(RUN, policy="work-conserving")])
    assert ">conserve = work-conserving</text>" in found["ttfet.svg"]
    assert ">stock-pd</text>" in found["ttfet.svg"]
    assert len(re.findall(r'class="line [^"]*" d="M[^"]*L', found["ttfet.svg"])) == 2
    assert ">conserve = stock-pd = work-conserving</text>" in found["e2e.svg"]


def test_a_policy_has_the_same_colour_in_each_figure() -> None:
    last = replace(RUN, policy="last", ttfet_s=[9.0, 9.0], e2e_s=[9.0, 9.0])
    found = figures([RUN, replace(RUN, policy="other", e2e_s=[7.0, 8.0]), last])
    for name in ("ttfet.svg", "e2e.svg"):
        assert re.findall(r'class="line s-(\d)" d="[^"]*"/><text[^>]*>last<', found[name]) == ["3"]


def test_a_single_conversation_is_seen() -> None:
    text = figures([replace(RUN, ttfet_s=[3.0])])["ttfet.svg"]
    (line,) = re.findall(r'class="line [^"]*" d="M([^"]*L[^"]*)"', text)
    assert len(set(line.split("L"))) == 2


def test_without_power_there_is_none_to_draw() -> None:
    found = figures([replace(RUN, tokens_per_joule=None, watts={})])
    assert set(found) == {"ttfet.svg", "last_turn_tbt.svg", "e2e.svg"}


def test_a_curve_ends_at_the_share_that_was_answered() -> None:
    lost = replace(RUN, policy="half", ttfet_s=[1.0, inf, 2.0, inf], e2e_s=[1.0, inf])
    found = figures([RUN, lost])
    whole, half = (
        [float(point.split()[1]) for point in line.split("L")]
        for line in re.findall(r'class="line [^"]*" d="M([^"]*L[^"]*)"', found["ttfet.svg"])
    )
    bottom, top = max(whole), min(whole)
    assert (bottom - min(half)) / (bottom - top) == pytest.approx(0.5, abs=0.01)
    ends = re.findall(r'class="line [^"]*" d="[^"]*L([\d.]+) [\d.]+"', found["ttfet.svg"])
    assert len(set(ends)) == 1, "and goes on at that height"
    assert "half (50.0% answered)" in found["ttfet.svg"]
    assert "100 (50.0% answered)" in found["tokens_per_joule.svg"]
    assert "conserve (" not in found["ttfet.svg"]


def test_the_axis_of_a_share_goes_up_to_100() -> None:
    text = figures([replace(RUN, e2e_s=[1.0, *[inf] * 9])])["e2e.svg"]
    assert ">100</text>" in text


def test_a_run_in_which_nothing_was_answered_stays_at_0() -> None:
    found = figures([replace(RUN, ttfet_s=[inf], last_turn_tbt_s=[inf], e2e_s=[inf])])
    ElementTree.fromstring(found["ttfet.svg"])
    assert ">conserve (0.0% answered)</text>" in found["ttfet.svg"]
    (line,) = re.findall(r'class="line [^"]*" d="M([^"]*L[^"]*)"', found["ttfet.svg"])
    assert len({point.split()[1] for point in line.split("L")}) == 1


def test_a_run_without_conversations_is_drawn_empty() -> None:
    found = figures([replace(RUN, ttfet_s=[], last_turn_tbt_s=[], e2e_s=[])])
    ElementTree.fromstring(found["ttfet.svg"])
