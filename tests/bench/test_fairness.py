"""The fairness bench in short: what its whole run reports must show in seconds already."""

import pytest

from bench.fairness.live import play
from bench.fairness.scenario import BURSTY, STEADY, Scenario
from bench.fairness.simulated import simulate

SHORT = Scenario(duration_s=40.0, burst_size=40, burst_every_s=40.0)


def test_steady_conversations_are_the_same_with_and_without_the_burst() -> None:
    alone, both = SHORT.plans(has_burst=False), SHORT.plans(has_burst=True)
    assert [plan for plan in both if plan.tenant == STEADY] == alone
    assert sum(plan.tenant == BURSTY for plan in both) == 40


# The three plays follow each other in real time: other work on the machine may slow only one.
@pytest.mark.flaky(reruns=2)
async def test_a_burst_through_the_router_hardly_delays_the_other_tenant() -> None:
    rows = await play(SHORT, speed=8.0)
    alone, fifo, fair = (rows[mode]["b"] for mode in ("alone", "burst, FIFO", "burst, fair"))
    assert alone["num_answered"] == fifo["num_answered"] == fair["num_answered"] > 5
    assert fifo["ttfet_s_p95"] > 1.5 * alone["ttfet_s_p95"], "it is a burst"
    assert fair["ttfet_s_p95"] < 1.4 * alone["ttfet_s_p95"], "20 % and what a busy machine adds"
    assert rows["burst, fair"]["a"]["num_answered"] == 40


def test_simulated_burst_delays_the_other_tenants_first_turns_less_than_in_arrival_order() -> None:
    rows = simulate(SHORT, bound=16_384)
    fifo, fair = (rows[mode]["b"] for mode in ("burst, FIFO", "burst, fair"))
    assert fair["first_ttft_s_p95"] < 0.3 * fifo["first_ttft_s_p95"]
    assert fair["ttfet_s_p95"] < 0.7 * fifo["ttfet_s_p95"]
