"""Figures are of all conversations that arrived: who serves few must not look fast."""

from math import inf

import pytest

from conserve_sglang.core.tier import Slo
from conserve_sglang.sim import Simulation, Summary, Tally, alone
from conserve_sglang.workload import ConversationPlan
from tests.sim.builders import PERF, a_deployment, a_plan


def summary_of(plans: list[ConversationPlan], slo: Slo | None = None) -> tuple[Summary, Tally]:
    """One worker of 10,000 tokens of KV: what is longer is never answered."""
    tally = Tally(PERF, slo)
    Simulation(a_deployment("m0", policy="colocated", capacity=10_000), tally).run(plans)
    return tally.summary(), tally


SHORT = [a_plan(f"s{n}", (1000, 20), at=100.0 * n) for n in range(3)]
LONG = a_plan("long", (20_000, 20), at=300.0)


def test_one_that_is_not_answered_never_ends() -> None:
    found, _ = summary_of([*SHORT, LONG])
    assert found.outcomes == {"answered": 3, "rejected": 1}
    for figures in (found.ttfet, found.last_turn_tbt, found.e2e):
        assert figures is not None
        assert figures.count == 4
        assert figures.p50_s < inf
        assert (figures.p95_s, figures.p95_normalised, figures.geomean_normalised) == (inf,) * 3
        assert figures.slo_attainment == 0.75


def test_the_papers_target_is_of_all_that_arrived() -> None:
    found, _ = summary_of([*SHORT, LONG])
    assert found.ttfet is not None
    mean_s = sum(alone(plan, PERF).ttfet_s for plan in (*SHORT, LONG)) / 4
    assert found.ttfet.slo_s == pytest.approx(5 * mean_s)


def test_where_nothing_is_answered_nothing_ends() -> None:
    found, tally = summary_of([LONG], Slo(ttfet_s=1e6))
    assert found.ttfet is not None
    assert (found.ttfet.p50_s, found.ttfet.slo_attainment, tally.attained) == (inf, 0.0, 0.0)


def test_a_conversation_without_tokens_to_wait_between_has_no_tbt() -> None:
    single = a_plan("one", (1000, 1))
    unanswered = a_plan("two", (20_000, 1), at=50.0)
    found, _ = summary_of([single, unanswered])
    assert found.last_turn_tbt is None
    assert found.ttfet is not None
    assert found.ttfet.count == 2


def test_targets_given_are_judged_one_by_one_and_together() -> None:
    free, _ = summary_of([*SHORT, LONG])
    assert free.ttfet is not None
    found, tally = summary_of([*SHORT, LONG], Slo(ttfet_s=1.01 * free.ttfet.p50_s, e2e_s=1e-3))
    assert found.ttfet is not None
    assert found.e2e is not None
    assert found.last_turn_tbt is not None
    assert (found.ttfet.slo_attainment, found.e2e.slo_attainment) == (0.75, 0.0)
    assert (found.last_turn_tbt.slo_s, found.last_turn_tbt.slo_attainment) == (None, None)
    assert tally.attained == 0.0
    _, kept = summary_of([*SHORT, LONG], Slo(ttfet_s=1.01 * free.ttfet.p50_s))
    assert kept.attained == 0.75
    _, papers = summary_of(SHORT)
    assert papers.attained is None
