"""Power over time adds up to the joules, and stays below what the GPUs can draw."""

import random

import pytest

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.power_log import PowerLog
from conserve_sglang.planning.score import simulated_workers
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import ConversationRecord, Deployment, Simulation
from conserve_sglang.workload import poisson_arrivals, with_arrivals
from tests.planning.builders import A40, A40_200W, conversations

HARDWARE = {A40.config(Role.PREFILL): A40, A40_200W.config(Role.DECODE): A40_200W}
COUNTS = {A40.config(Role.PREFILL): 1, A40_200W.config(Role.DECODE): 3}


def test_the_bins_add_up_to_the_joules_of_the_run() -> None:
    records: list[ConversationRecord] = []
    deployment = Deployment(
        workers=simulated_workers(COUNTS, HARDWARE),
        policy=make_policy(PolicyChoice(name="conserve", params={})),
    )
    simulation = Simulation(deployment, records.append)
    log = PowerLog(simulation, 5.0)
    end_s = simulation.run(
        with_arrivals(conversations(150), poisson_arrivals(0.8, random.Random(3)))
    )
    (points,) = log.watts.values()
    covered_s = points[-1][0]
    total_j = sum(watts * 5.0 for _, watts in points)
    whole_j = sum(worker.total_j for worker in simulation.energy(end_s))
    assert covered_s == pytest.approx(end_s, abs=6.0)
    assert total_j == pytest.approx(whole_j * covered_s / end_s, rel=0.02)
    most_w = 300.0 + 3 * 200.0
    assert max(watts for _, watts in points) <= most_w
    assert min(watts for _, watts in points) >= 4 * 76.0 * 0.999
    assert len(records) == 150


def test_without_bins_nothing_is_kept() -> None:
    deployment = Deployment(
        workers=simulated_workers(COUNTS, HARDWARE),
        policy=make_policy(PolicyChoice(name="conserve", params={})),
    )
    simulation = Simulation(deployment, lambda _: None)
    log = PowerLog(simulation, 0.0)
    simulation.run(conversations(2))
    assert log.watts == {}
