"""Joules per output token brought under a target by caps, on plants with a known optimum."""

from dataclasses import replace

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.energy_target import EnergySettings
from conserve_sglang.power.observation import CapMove, Reason

from .plant import Plant, PlantTier, play


def decode_rate(plant: Plant, _: float) -> int:
    """Tokens a second: flat in the cap above 200 W, falling steeply below; 3 decoders."""
    cap_w = plant["d"].cap_w
    return int(3 * 500 * (1.0 if cap_w >= 200 else (cap_w / 200) ** 3))


def a_plant() -> Plant:
    return Plant(
        [
            PlantTier("p", Role.PREFILL, 1, lambda _: 250.0),
            PlantTier("d", Role.DECODE, 3, lambda _: 290.0),
        ],
        tokens=decode_rate,
    )


def controller(j_per_output_token: float, **fields: float) -> PowerController:
    energy = EnergySettings(j_per_output_token=j_per_output_token)
    return PowerController(ControlSettings(energy=energy, **fields))  # type: ignore[arg-type]


def test_decode_is_lowered_until_a_token_costs_no_more_than_it_may() -> None:
    plant, held = a_plant(), controller(0.62)
    run = play(plant, held, 300)
    assert held.j_per_output_token is not None
    assert held.j_per_output_token <= 0.62
    assert 200 <= plant["d"].cap_w < 290
    assert plant["p"].cap_w == 300
    assert all(m.reason in (Reason.ENERGY_TARGET, Reason.HEADROOM) for _, m in run.moves)


def test_what_costs_more_than_it_saves_is_taken_back() -> None:
    """The target is out of reach: decode ends where its tokens are cheapest, not at its least."""
    plant = a_plant()
    play(plant, controller(0.01), 300)
    assert 190 <= plant["d"].cap_w <= 240


def test_a_target_that_is_met_moves_nothing() -> None:
    plant = a_plant()
    assert play(plant, controller(5.0), 100).moves == []


def test_a_load_that_is_gone_gives_the_caps_back() -> None:
    plant, held = a_plant(), controller(0.62)
    play(plant, held, 200)
    capped_w = plant["d"].cap_w
    plant.tokens = lambda plant, _: 4 * decode_rate(plant, 0)
    play(plant, held, 600)
    assert plant["d"].cap_w > capped_w


def test_nothing_oscillates_at_the_target() -> None:
    plant = a_plant()
    run = play(plant, controller(0.62), 1800)
    assert run.turns("d") <= 2


def test_few_tokens_are_no_measure() -> None:
    plant = a_plant()
    plant.tokens = lambda *_: 1
    assert play(plant, controller(0.01), 50).moves == []


def test_an_slo_takes_its_ceiling_back() -> None:
    plant = a_plant()
    plant.tbt = lambda plant, _: 0.2 if plant["d"].cap_w < 250 else 0.05
    play(plant, controller(0.5, tbt_slo_s=0.1), 200)
    assert plant["d"].cap_w >= 250


def test_a_power_budget_holds_beside_a_target() -> None:
    plant, held = a_plant(), controller(0.62, power_budget_w=800.0)
    run = play(plant, held, 200)
    assert len(run.over(800)) == 1
    assert held.j_per_output_token is not None
    assert held.j_per_output_token <= 0.62


def test_blind_it_lets_go() -> None:
    plant, held = a_plant(), controller(0.62)
    play(plant, held, 100)
    moves = held.handle(replace(plant.observe(200.0), measured_at_s=None))
    assert [(m.tier, m.after_w) for m in moves if isinstance(m, CapMove)] == [("d", 300)]


@pytest.mark.parametrize("target", [0.55, 0.6, 0.7])
def test_every_target_above_the_optimum_is_reached(target: float) -> None:
    """At 200 W a token takes (250 + 600) / 1500 = 0.57 J, the least there is."""
    plant, held = a_plant(), controller(target)
    play(plant, held, 400)
    assert held.j_per_output_token is not None
    assert held.j_per_output_token <= max(target, 0.6)
