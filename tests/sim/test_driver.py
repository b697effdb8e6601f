"""What a run leaves behind it."""

import gc

import pytest

from conserve_sglang.sim import ConversationRecord, Simulation
from tests.sim.builders import a_deployment, a_plan


def test_python_looks_for_cycles_as_before_once_a_run_is_over() -> None:
    before, during = gc.get_threshold(), []

    def sink(record: ConversationRecord) -> None:
        during.append(gc.get_threshold())

    Simulation(a_deployment("p0", "d0"), sink).run([a_plan("a", (1000, 10))])
    assert during[0] != before
    assert gc.get_threshold() == before


def test_also_after_a_run_that_fails() -> None:
    before = gc.get_threshold()

    def sink(record: ConversationRecord) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Simulation(a_deployment("p0", "d0"), sink).run([a_plan("a", (1000, 10))])
    assert gc.get_threshold() == before


def test_a_simulation_can_be_given_more_to_play() -> None:
    records: list[ConversationRecord] = []
    simulation = Simulation(a_deployment("p0", "d0"), records.append)
    first_over_s = simulation.run([a_plan("a", (1000, 10))])
    assert simulation.is_over
    assert simulation.run([a_plan("b", (1000, 10), at=first_over_s + 1)]) > first_over_s + 1
    assert [record.plan.conversation_id for record in records] == ["a", "b"]


def test_a_run_of_nothing_is_over_at_once() -> None:
    assert Simulation(a_deployment("p0", "d0"), print).run([]) == 0.0
