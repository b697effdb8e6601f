"""Operating points are near what the simulator does at light and medium load."""

import random
from dataclasses import replace

import pytest

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.stats import percentile
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.planning.demand import Variant, demand_of
from conserve_sglang.planning.operating import Decoder, Prefiller, Target, levels
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import ConversationRecord, Deployment, Simulation, SimWorkerSpec
from conserve_sglang.workload import ConversationPlan, TurnPlan, poisson_arrivals, with_arrivals
from tests.planning.builders import A40, COLOCATED, CONSERVE, conversations

TARGET = Target(level=0.95, load_per_s=None)


def simulated(variant: Variant, roles: str, rate: float) -> tuple[float, float, float]:
    """p95 of TTFET, last-turn TBT and E2E."""
    kinds = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
    workers = tuple(
        SimWorkerSpec(
            spec=WorkerSpec(
                worker_id=WorkerId(f"{kind}{number}"),
                role=kinds[kind],
                tier=TierName("a40"),
                kv_capacity_tokens=A40.kv_capacity_tokens,
            ),
            perf=A40.perf,
        )
        for number, kind in enumerate(roles)
    )
    records: list[ConversationRecord] = []
    deployment = Deployment(workers=workers, policy=make_policy(variant.policy))
    arrivals = poisson_arrivals(rate, random.Random(2))
    Simulation(deployment, records.append).run(with_arrivals(conversations(600), arrivals))
    ttfets = sorted(record.ttfet_s for record in records)
    tbts = sorted(record.last_turn_tbt_s for record in records if record.last_turn_tbt_s)
    e2es = sorted(record.e2e_s for record in records)
    return percentile(ttfets, 95), percentile(tbts, 95), percentile(e2es, 95)


@pytest.mark.parametrize(("rate", "tolerance"), [(0.5, 0.15), (1.0, 0.25)])
def test_prefillers_and_decoders_are_near_the_simulator(rate: float, tolerance: float) -> None:
    demand = demand_of(conversations(600), CONSERVE)
    target = Target(level=0.95, load_per_s=rate)
    prefill = next(c for c in Prefiller(A40, demand, target).columns() if c.load_per_s == rate)
    decode = Decoder(A40, demand, target, Role.DECODE).column(rate / 3)
    ttfet_s, tbt_s, e2e_s = simulated(CONSERVE, "pddd", rate)
    assert prefill.ttfet_s + decode.ttfet_s == pytest.approx(ttfet_s, rel=tolerance)
    assert decode.tbt_s == pytest.approx(tbt_s, rel=tolerance)
    assert prefill.e2e_s + decode.e2e_s == pytest.approx(e2e_s, rel=tolerance)


@pytest.mark.parametrize(("rate", "tolerance"), [(0.5, 0.3), (1.0, 0.3)])
def test_mixed_workers_are_near_the_simulator(rate: float, tolerance: float) -> None:
    demand = demand_of(conversations(600), COLOCATED)
    mixed = Decoder(A40, demand, TARGET, Role.MIXED).column(rate / 4)
    ttfet_s, tbt_s, e2e_s = simulated(COLOCATED, "mmmm", rate)
    assert mixed.ttfet_s == pytest.approx(ttfet_s, rel=tolerance)
    assert mixed.tbt_s == pytest.approx(tbt_s, rel=tolerance)
    assert mixed.e2e_s == pytest.approx(e2e_s, rel=tolerance)


def test_more_load_costs_more_of_everything() -> None:
    decoder = Decoder(A40, demand_of(conversations(100), CONSERVE), TARGET, Role.DECODE)
    columns = sorted(decoder.columns(), key=lambda column: column.load_per_s)
    for name in ("mean_w", "ttfet_s", "tbt_s", "e2e_s", "batch", "busy"):
        values = [getattr(column, name) for column in columns]
        assert values == sorted(values), name
    assert len(columns) > 10


def test_less_kv_room_carries_less_load() -> None:
    demand = demand_of(conversations(100), CONSERVE)
    most = [
        Decoder(replace(A40, kv_capacity_tokens=room), demand, TARGET, Role.DECODE).most_load_per_s
        for room in (20_000, 60_000, 120_000, 300_000)
    ]
    assert most == sorted(most)
    assert most[0] < 0.5 * most[-1]


def test_idle_conversations_take_kv_room_while_it_is_kept() -> None:
    plan = ConversationPlan(
        conversation_id=conversations(1)[0].conversation_id,
        turns=(
            TurnPlan(input_tokens=10_000, output_tokens=100),
            TurnPlan(input_tokens=10_200, output_tokens=100, shared_tokens=10_100, gap_s=120.0),
        ),
    )
    kept = demand_of([plan], CONSERVE)
    let_go = demand_of([plan], replace(CONSERVE, kept_gap_s=15.0))
    assert kept.works[0].idle_kv_s == 120.0 * 10_100
    assert let_go.works[0].idle_kv_s == 15.0 * 10_100
    assert [kept.works[0].phase_one, let_go.works[0].phase_one] == [
        ((10_000, 0),),
        ((10_000, 0), (10_200, 0)),
    ]
    assert kept.works[0].local == ((100, 10_100),)


def test_a_large_append_is_the_prefillers_work() -> None:
    plan = conversations(1)[0]
    small = replace(CONSERVE, max_local_append_tokens=10)
    assert len(demand_of([plan], CONSERVE).works[0].phase_one) == 1
    assert len(demand_of([plan], small).works[0].phase_one) == len(plan.turns)
    assert demand_of([plan], COLOCATED).works[0].phase_one == ()


def test_a_whole_conversation_on_mixed_workers_leaves_prefillers_nothing() -> None:
    demand = demand_of(conversations(10), COLOCATED)
    assert not list(Prefiller(A40, demand, TARGET).columns())


def test_levels_hold_the_demanded_loads_whole_fractions() -> None:
    found = list(levels(1.0, 1.5))
    assert max(found) == 1.0
    assert {0.75, 0.5, 0.375} <= set(found)
    assert 1.5 not in found
