"""A fleet has one row, whatever its policies; policies that differ show in what."""

import math
import re
from dataclasses import replace
from functools import cache

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning import Option, Plan, make_plan
from conserve_sglang.report.options import broken_text, grouped, names_apart
from conserve_sglang.report.plan_charts import pareto
from conserve_sglang.report.plan_choices import (
    MOST_KEPT,
    choices_of,
    choices_table,
    left_out_text,
)
from tests.planning.builders import a_request

COLOCATED = PolicyChoice(name="colocated", params={})
BACKLOG = PolicyChoice(name="colocated", params={"choose": "least_backlog"})
PACK = PolicyChoice(name="conserve-pack", params={"tbt_target_s": 0.1})


@cache
def a_plan() -> Plan:
    plan = make_plan(a_request())
    assert isinstance(plan, Plan)
    return replace(plan, options=(plan.chosen,))


def under(policy: PolicyChoice, ttfet_s: float | None = None) -> Option:
    chosen = a_plan().chosen
    score = chosen.score if ttfet_s is None else replace(chosen.score, ttfet_s=ttfet_s)
    return replace(chosen, policy=policy, score=score)


def with_options(*options: Option) -> Plan:
    return replace(a_plan(), chosen=options[0], options=options)


def test_policies_that_make_the_same_of_a_fleet_share_a_row() -> None:
    plan = with_options(under(COLOCATED), under(PACK), under(BACKLOG))
    (choice,) = choices_of(plan)
    assert [one.policy for one in choice.options] == [COLOCATED, PACK, BACKLOG]
    text = choices_table(plan, [choice])
    assert text.count('class="badge key"') == 1
    assert "conserve-pack (tbt_target_s 0.1)" in text
    assert "colocated (choose least_backlog)" in text


def test_rows_of_one_policy_show_in_what_they_differ() -> None:
    plan = with_options(under(COLOCATED), under(BACKLOG, 0.5))
    text = choices_table(plan, choices_of(plan))
    assert text.count('class="badge key"') == 2
    assert text.count("choose least_backlog") == 1
    assert names_apart([under(COLOCATED), under(BACKLOG, 0.5), under(PACK)]) == [
        "colocated\n  choose most_free", "colocated\n  choose least_backlog", "conserve-pack",
    ]  # fmt: skip
    assert names_apart([under(COLOCATED)]) == ["colocated"]


def test_each_drawn_fleet_has_one_point_and_its_letter() -> None:
    plan = with_options(under(COLOCATED), under(PACK), under(BACKLOG, 0.5))
    text = pareto(plan, choices_of(plan), 640)
    assert text.count("<circle") == 2
    assert sorted(re.findall(r'<text class="tag"[^>]*>([^<]*)<', text)) == ["A", "B"]
    assert ": colocated, conserve-pack</title>" in text


def test_a_fleet_that_breaks_a_limit_is_shown_with_it() -> None:
    late = under(BACKLOG, 1e6)
    plan = with_options(under(COLOCATED), late)
    kept, broken = choices_of(plan)
    assert (kept.is_kept, broken.is_kept) == (True, False)
    assert broken_text(plan.request, late) == "breaks TTFET p95"
    assert broken_text(plan.request, plan.chosen) == ""
    assert "breaks TTFET p95" in choices_table(plan, [kept, broken])


def test_what_is_missing_in_the_table_or_on_the_chart_is_told() -> None:
    many = [under(BACKLOG, 0.5 + number / 1000) for number in range(MOST_KEPT + 2)]
    plan = with_options(under(COLOCATED), *many, under(PACK, math.inf))
    choices = choices_of(plan)
    assert left_out_text(choices) == (
        "Not on the chart, as TTFET never ends: M. On the chart without a letter, and not in the"
        " table: 3 that keep all limits."
    )
    assert left_out_text(choices[:3]) == ""
    assert choices_table(plan, choices).count('class="badge key"') == MOST_KEPT + 1


def test_only_the_same_figures_are_put_together() -> None:
    assert [len(group) for group in grouped([under(COLOCATED), under(PACK), under(BACKLOG, 0.5)])] \
        == [2, 1]  # fmt: skip
