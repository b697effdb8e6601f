"""The control law on plants whose power is known: budgets held, SLOs spared, nothing oscillates."""

import itertools
from dataclasses import replace

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.observation import AdmissionMove, CapMove, Latency, Reason

from .plant import Demand, Plant, PlantTier, Run, play


def step(before: float, after: float, at_s: float, until_s: float = 1e9) -> Demand:
    return lambda now: after if at_s <= now < until_s else before


def paper(prefill: Demand, decode: Demand, **fields: object) -> Plant:
    """The paper's testbed: 1 + 3 A40."""
    tiers = [PlantTier("p", Role.PREFILL, 1, prefill), PlantTier("d", Role.DECODE, 3, decode)]
    return Plant(tiers, **fields)  # type: ignore[arg-type]


def controller(**fields: float) -> PowerController:
    return PowerController(ControlSettings(**{"power_budget_w": 900.0, **fields}))  # type: ignore[arg-type]


def caps(run: Run, tier: str) -> list[float]:
    return [
        move.after_w for _, move in run.moves if isinstance(move, CapMove) and move.tier == tier
    ]


@pytest.mark.parametrize("at_s", [10.0, 10.05, 10.5, 10.95])
def test_after_a_step_the_budget_is_exceeded_for_one_period_at_most(at_s: float) -> None:
    plant = paper(step(60, 300, at_s), step(60, 290, at_s))
    run = play(plant, controller(), 120)
    over = run.over(900)
    assert len(over) == 1
    assert run.watts[-1] <= 900


def test_decode_pays_first_and_prefill_is_not_touched_while_decode_can() -> None:
    plant = paper(step(60, 300, 5), step(60, 300, 5))
    play(plant, controller(), 30)
    assert plant["p"].cap_w == 300
    assert plant["d"].cap_w == pytest.approx((900 * 0.96 - 300) / 3, abs=1)


def test_prefill_pays_when_decode_has_no_more() -> None:
    plant = paper(step(60, 300, 5), step(60, 300, 5))
    run = play(plant, controller(power_budget_w=550.0), 30)
    assert plant["d"].cap_w == 100
    assert plant["p"].cap_w == pytest.approx(550 * 0.96 - 300, abs=1)
    assert len(run.over(550)) == 1


def test_a_steady_load_makes_nothing_oscillate() -> None:
    plant = paper(step(60, 300, 5), step(60, 290, 5))
    run = play(plant, controller(), 1200)
    assert (run.turns("p"), run.turns("d")) == (0, 0)
    assert not any(now > 60 for now, _ in run.moves)


def test_power_that_others_do_not_use_comes_back_without_breaking_the_budget() -> None:
    """Prefill falls idle: its watts are decode's, step by step, and no step breaks the budget."""
    plant = paper(step(60, 300, 5, 60), step(60, 290, 5))
    run = play(plant, controller(), 200)
    assert len(run.over(900)) == 1
    assert plant["d"].cap_w >= 250
    raises = [now for now, move in run.moves if isinstance(move, CapMove) and now > 60]
    assert all(b - a >= 5 for a, b in itertools.pairwise(raises))
    assert caps(run, "d")[1] - caps(run, "d")[0] == 25


def test_a_load_that_comes_and_goes_is_met_ever_more_cautiously() -> None:
    demand: Demand = lambda now: 300.0 if now % 60 < 30 and now > 5 else 60.0  # noqa: E731
    plant = paper(demand, step(60, 290, 5))
    run = play(plant, controller(), 1200)
    over = run.over(900)
    assert all(b - a > 1 for a, b in itertools.pairwise(over))  # one period at a time
    assert len([n for n in over if n > 600]) <= len([n for n in over if n <= 600])
    assert len(over) <= 20  # at most one for each of the 20 steps


def test_all_caps_come_back_when_the_budget_has_room_for_all() -> None:
    plant = paper(step(60, 300, 5), step(60, 290, 5))
    held = controller()
    play(plant, held, 30)
    for tier in plant.tiers:
        tier.base_w = min(tier.base_w, 200)
        tier.cap_w = min(tier.cap_w, 200)
    play(plant, held, 60)
    assert [tier.cap_w for tier in plant.tiers] == [200, 200]


def test_stale_metrics_restore_every_cap_instead_of_holding_it() -> None:
    plant = paper(step(60, 300, 5), step(60, 290, 5))
    held = controller(power_budget_w=450.0)
    play(plant, held, 20)
    assert plant["d"].cap_w < 300
    assert plant.max_running is None
    seen = plant.observe(24.0)
    fine = held.handle(replace(seen, measured_at_s=21.5))
    assert not [move for move in fine if move.reason is Reason.STALE]
    plant.obey(fine)
    moves = held.handle(replace(plant.observe(25.0), measured_at_s=21.5))
    plant.obey(moves)
    assert {move.reason for move in moves} == {Reason.STALE}
    assert [tier.cap_w for tier in plant.tiers] == [300, 300]
    assert held.handle(replace(plant.observe(26.0), measured_at_s=None)) == ()


def test_tbt_slo_is_spared_at_the_cost_of_prefill_when_that_can_pay() -> None:
    """Decode breaks below 230 W: prefill, whose SLO is met, pays for it."""
    plant = paper(
        step(60, 300, 5),
        step(60, 300, 5),
        tbt=lambda plant, _: 0.05 if plant["d"].cap_w >= 230 else 0.12,
        ttfet=lambda plant, _: 2.0,
    )
    run = play(plant, controller(tbt_slo_s=0.1, ttfet_slo_s=8.0), 90)
    assert plant["d"].cap_w >= 230
    assert len(run.over(900)) == 1
    assert plant.max_running is None
    broken = [seen for seen in run.seen if seen.tbt and seen.tbt.p95_s > 0.1]
    assert len(broken) <= 3


def test_admission_is_cut_when_no_cap_can_pay_without_breaking_an_slo() -> None:
    """Both tiers break their SLO just below their caps: fewer turns run, and draw less."""

    def load(plant: Plant) -> float:
        return min(1.0, plant.running / 100)

    plant = paper(step(60, 300, 5), step(60, 300, 5))
    plant["p"].demand = lambda now: 60 + (240 * load(plant) if now >= 5 else 0)
    plant["d"].demand = lambda now: 60 + (240 * load(plant) if now >= 5 else 0)
    short = {"p": 0.9, "d": 0.9}  # of the demand, under which latencies break

    def latency(name: str) -> float:
        tier = plant[name]
        return 2.0 if tier.cap_w < short[name] * tier.demand(10.0) else 0.5

    plant.tbt = lambda _, now: latency("d")
    plant.ttfet = lambda _, now: latency("p")
    run = play(plant, controller(tbt_slo_s=1.0, ttfet_slo_s=1.0), 400)
    assert len(run.over(900)) == 1
    assert plant.max_running is not None
    assert latency("d") < 1.0
    assert latency("p") < 1.0
    late = [seen for seen in run.seen[200:] if seen.tbt and seen.tbt.p95_s > 1.0]
    assert len(late) <= 20  # attempts to admit more, at most one in ten periods


def test_the_budget_comes_before_the_slo_and_that_is_said() -> None:
    plant = paper(step(60, 300, 5), step(60, 300, 5), tbt=lambda *_: 9.0, ttfet=lambda *_: 9.0)
    held = controller(power_budget_w=500.0, tbt_slo_s=0.1, ttfet_slo_s=1.0)
    run = play(plant, held, 30)
    assert len(run.over(500)) == 1
    assert not held.is_infeasible
    impossible = controller(power_budget_w=300.0)
    again = play(paper(step(60, 300, 5), step(60, 300, 5)), impossible, 30)
    assert impossible.is_infeasible
    assert any(isinstance(move, AdmissionMove) for _, move in again.moves)
    assert any(move.reason is Reason.SLO_GIVEN_UP or move.reason is Reason.OVER_BUDGET
               for _, move in again.moves)  # fmt: skip


def test_gpus_that_are_not_held_are_counted_and_never_moved() -> None:
    plant = paper(step(60, 300, 5), step(60, 300, 5))
    plant["p"].is_held = False
    run = play(plant, controller(), 30)
    assert len(run.over(900)) == 1
    assert caps(run, "p") == []


def test_caps_that_are_not_obeyed_are_lowered_further() -> None:
    """GPUs that draw 40 W more than their cap: the excess is taken off after three periods."""
    plant = paper(step(60, 300, 5), step(60, 300, 5))
    lie = 60.0

    def watts(tier: PlantTier, at_s: float) -> float:
        return tier.num_gpus * min(tier.demand(at_s), tier.cap_w + lie * (tier.cap_w < 300))

    for tier in plant.tiers:
        tier.watts = watts.__get__(tier)  # type: ignore[method-assign]
    run = play(plant, controller(), 60)
    assert run.watts[-1] <= 900


def test_an_slo_broken_by_something_else_moves_no_cap() -> None:
    """Decode draws far less than its cap, so a higher one would not help."""
    plant = paper(step(60, 300, 5), step(60, 150, 5), tbt=lambda *_: 9.0)
    run = play(plant, controller(tbt_slo_s=0.1), 60)
    assert run.moves == []


def test_few_samples_are_no_broken_slo() -> None:
    held = controller(tbt_slo_s=0.1)
    plant = paper(step(60, 300, 5), step(60, 300, 5))
    play(plant, held, 12)
    seen = replace(plant.observe(13.0), tbt=Latency(p95_s=5.0, num_samples=2))
    assert not any(move.reason is Reason.TBT_SLO for move in held.handle(seen))
