"""Promises of the control law on random deployments, demands and observations."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.worker import Role
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.energy_target import EnergySettings
from conserve_sglang.power.observation import (
    SLO_COST,
    CapMove,
    Latency,
    Observation,
    Reason,
    TierReading,
)

from .plant import Demand, Plant, PlantTier, play

watts = st.floats(30, 700).map(lambda value: round(value, 1))
latencies = st.none() | st.builds(
    Latency, p95_s=st.floats(0.001, 10), num_samples=st.integers(0, 50)
)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[TierReading, ...]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        least_w = draw(st.integers(50, 200))
        base_w = draw(st.integers(least_w, 700))
        cap_w = draw(st.integers(least_w, base_w))
        num_gpus = draw(st.integers(1, 8))
        found.append(
            TierReading(
                tier=f"t{number}",
                role=draw(st.sampled_from(list(Role))),
                num_gpus=num_gpus,
                watts=num_gpus * min(cap_w, draw(watts)),
                cap_w=float(cap_w),
                base_w=float(base_w),
                least_w=float(least_w),
                is_held=draw(st.booleans()),
            )
        )
    return tuple(found)


@st.composite
def observations(draw: st.DrawFn) -> list[Observation]:
    """As a deployment tells them that carries out no move: the law must stand that as well."""
    readings = draw(tiers())
    found, at_s = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        at_s += draw(st.sampled_from([1.0, 1.0, 1.0, 7.0, 100.0]))
        found.append(
            Observation(
                at_s=at_s,
                measured_at_s=draw(st.sampled_from([at_s, at_s, at_s - 0.5, at_s - 9, None])),
                tiers=tuple(
                    replace(reading, watts=reading.num_gpus * min(reading.cap_w, draw(watts)))
                    for reading in readings
                ),
                other_w=draw(st.sampled_from([0.0, 80.0])),
                joules=draw(st.floats(0, 5000)),
                output_tokens=draw(st.integers(0, 3000)),
                tbt=draw(latencies),
                ttfet=draw(latencies),
                num_running=draw(st.integers(0, 200)),
            )
        )
    return found


laws = st.builds(
    ControlSettings,
    power_budget_w=st.none() | st.floats(100, 5000),
    energy=st.none() | st.builds(EnergySettings, j_per_output_token=st.floats(0.01, 10)),
    ttfet_slo_s=st.none() | st.floats(0.01, 10),
    tbt_slo_s=st.none() | st.floats(0.01, 10),
)


def apply(readings: Sequence[TierReading], moves: Sequence[object]) -> dict[str, float]:
    caps = {reading.tier: reading.cap_w for reading in readings}
    for move in moves:
        if isinstance(move, CapMove):
            caps[move.tier] = move.after_w
    return caps


def test_moves_that_cancel_out_are_none() -> None:
    """The energy target lowers a cap in the same period in which the TBT SLO wants it back."""
    law = ControlSettings(energy=EnergySettings(j_per_output_token=1.0), tbt_slo_s=1.0)
    tier = TierReading(
        tier="d", role=Role.DECODE, num_gpus=1, watts=72.0, cap_w=75.0, base_w=76.0,
        least_w=50.0, is_held=True,
    )  # fmt: skip
    calm = Observation(
        at_s=1.0, measured_at_s=1.0, tiers=(tier,), other_w=0.0, joules=0.0, output_tokens=0,
        ttfet=None, tbt=None, num_running=0,
    )  # fmt: skip
    controller = PowerController(law)
    for at_s in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
        controller.handle(replace(calm, at_s=at_s, measured_at_s=at_s))
    late = Latency(p95_s=1.0, num_samples=5)
    last = replace(calm, at_s=107.0, measured_at_s=107.0, joules=65.0, output_tokens=64, tbt=late)
    assert [move for move in controller.handle(last) if isinstance(move, CapMove)] == []


@given(laws, observations())
@settings(max_examples=100, deadline=None)
def test_whatever_is_seen_every_move_is_allowed_and_said_once(
    law: ControlSettings, seen: list[Observation]
) -> None:
    controller, again = PowerController(law), PowerController(law)
    for one in seen:
        admitted = controller.max_running
        moves = controller.handle(one)
        assert moves == again.handle(one)  # nothing but what is seen
        by_tier = {reading.tier: reading for reading in one.tiers}
        named = [move.tier for move in moves if isinstance(move, CapMove)]
        assert len(named) == len(set(named))
        for move in moves:
            assert move.why
            if isinstance(move, CapMove):
                reading = by_tier[move.tier]
                assert reading.is_held
                assert move.before_w == reading.cap_w != move.after_w
                assert reading.least_w <= move.after_w <= reading.base_w
            else:
                assert (move.before, move.after) == (admitted, controller.max_running)
                assert move.after is None or move.after >= 1


@given(laws, observations())
@settings(max_examples=100, deadline=None)
def test_over_the_budget_the_caps_fit_it_at_once_or_can_do_no_more(
    law: ControlSettings, seen: list[Observation]
) -> None:
    controller = PowerController(law)
    for one in seen:
        moves = controller.handle(one)
        is_fresh = one.measured_at_s is not None and one.at_s - one.measured_at_s <= law.stale_s
        if not is_fresh or law.power_budget_w is None or one.watts <= law.power_budget_w:
            continue
        caps = apply(one.tiers, moves)
        fixed_w = one.other_w + sum(r.watts for r in one.tiers if not r.is_held)
        most_w = fixed_w + sum(r.num_gpus * caps[r.tier] for r in one.levers)
        is_least = all(caps[r.tier] == r.least_w for r in one.levers)
        assert most_w <= law.power_budget_w * (1 - law.hysteresis) + 1e-6 or is_least
        assert controller.is_infeasible <= is_least


@given(laws, observations())
@settings(max_examples=100, deadline=None)
def test_a_dearer_tier_pays_only_when_the_cheaper_ones_can_not(
    law: ControlSettings, seen: list[Observation]
) -> None:
    """Over the budget: whatever is lowered, all cheaper tiers are at a floor, their least or the
    one an SLO taught. Below its learnt floor nobody goes without admission being cut."""
    controller = PowerController(law)
    for one in seen:
        floors = {r.tier: controller._floor_w(r, one.at_s) for r in one.levers}
        moves = controller.handle(one)
        caps = apply(one.tiers, moves)
        for move in moves:
            if not isinstance(move, CapMove) or move.reason is not Reason.OVER_BUDGET:
                continue
            dear = next(r for r in one.levers if r.tier == move.tier)
            assert move.after_w >= floors[dear.tier]
            for cheap in one.levers:
                if SLO_COST[cheap.role] < SLO_COST[dear.role]:
                    least_w = max(cheap.least_w, min(floors[cheap.tier], cheap.cap_w))
                    assert caps[cheap.tier] <= least_w
        if any(move.reason is Reason.SLO_GIVEN_UP for move in moves):
            assert controller.max_running is not None


@given(laws, observations())
@settings(max_examples=100, deadline=None)
def test_what_is_not_measured_is_not_capped(law: ControlSettings, seen: list[Observation]) -> None:
    controller = PowerController(law)
    for one in seen:
        moves = controller.handle(one)
        if one.measured_at_s is None or one.at_s - one.measured_at_s > law.stale_s:
            caps = apply(one.tiers, moves)
            assert all(caps[r.tier] == r.base_w for r in one.levers)
            assert controller.max_running is None


def stepping(before: float, after: float, at_s: float) -> Demand:
    return lambda now: after if now >= at_s else before


@st.composite
def plants(draw: st.DrawFn) -> tuple[Plant, float, float]:
    """Tiers whose demands step once; the budget is one that caps can keep."""
    at_s = draw(st.floats(5, 8))
    found = []
    for number, role in enumerate(draw(st.lists(st.sampled_from(list(Role)), min_size=1))[:4]):
        before, after = draw(st.floats(40, 300)), draw(st.floats(40, 300))
        found.append(
            PlantTier(
                f"t{number}",
                role,
                draw(st.integers(1, 4)),
                stepping(before, after, at_s),
            )
        )
    least = sum(tier.num_gpus * tier.least_w for tier in found)
    most = sum(tier.num_gpus * tier.base_w for tier in found)
    budget_w = draw(st.floats(least / 0.95, max(least / 0.95, most)))
    return Plant(found), budget_w, at_s


@given(plants())
@settings(max_examples=60, deadline=None)
def test_each_step_of_demand_costs_one_period_and_then_all_is_still(
    made: tuple[Plant, float, float],
) -> None:
    plant, budget_w, at_s = made
    run = play(plant, PowerController(ControlSettings(power_budget_w=budget_w)), 400)
    over = run.over(budget_w)
    assert len([n for n in over if n + 1 < at_s]) <= 1  # the load at the start is a step as well
    assert len([n for n in over if n + 1 >= at_s]) <= 1
    assert not any(now > 300 for now, _ in run.moves)
    for tier in plant.tiers:
        assert run.turns(tier.name) <= 3
