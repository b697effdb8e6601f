"""From a tier map and what GPUs say of themselves to a plan, without a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.tier import TierMap
from conserve_sglang.power.caps import (
    GpuState,
    Knob,
    Wish,
    describe,
    plan_caps,
    wishes,
)
from conserve_sglang.tiermap import load_tier_map

MAPS = Path(__file__).parents[2] / "tier_maps"
TWO_MACHINES = Path(__file__).parents[1] / "maps" / "two_machines.yaml"


def gpu(index: int, **fields: Any) -> GpuState:
    values: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "index": index,
        "name": "A40",
        "cap_w": 300.0,
        "least_w": 100.0,
        "most_w": 300.0,
        "sm_clocks_mhz": (1740, 1500, 1200),
        "reach_mhz": 1740,
    }
    return GpuState(**{**values, **fields})


def wish(index: int = 0, **fields: Any) -> Wish:
    values: dict[str, Any] = {"host": "box", "index": index, "tiers": ("decode",)}
    return Wish(**{**values, **fields})


def capped() -> TierMap:
    return load_tier_map(MAPS / "a40_capped.yaml")


def test_each_gpu_of_a_tier_gets_the_tiers_cap_and_no_other_gpu_any() -> None:
    asked = wishes(capped(), lambda _: True)
    plan = plan_caps(asked, {index: gpu(index) for index in range(8)})
    assert [(change.uuid, change.before, change.after) for change in plan.changes] == [
        ("GPU-1", 300.0, 200.0),
        ("GPU-2", 300.0, 200.0),
        ("GPU-3", 300.0, 200.0),
    ]  # GPU 0 has its 300 W already; 4 to 7 are not in the tier map
    assert plan.problems == ()


def test_only_the_hosts_that_are_here_are_planned() -> None:
    assert wishes(capped(), lambda _: False) == ()


def test_a_map_without_caps_asks_for_nothing_unless_it_is_controlled() -> None:
    tier_map = load_tier_map(TWO_MACHINES)
    assert wishes(tier_map, lambda _: True) == ()
    asked = wishes(tier_map, lambda _: True, for_control=True)
    assert [(each.host, each.index) for each in asked] == [
        ("a40-box", 0), ("l4-box", 0), ("l4-box", 1), ("l4-box", 2), ("l4-box", 3),
    ]  # fmt: skip
    assert plan_caps(asked[:1], {0: gpu(0)}).changes == ()


@pytest.mark.parametrize("watts", [99.9, 300.1, 20.0, 5000.0])
def test_what_is_out_of_range_is_refused_and_never_clamped(watts: float) -> None:
    plan = plan_caps([wish(power_cap_w=watts)], {0: gpu(0)})
    assert plan.changes == ()
    assert "100 to 300 W" in plan.problems[0]
    assert f"{watts:g}" in plan.problems[0]


def test_a_limit_is_not_raised_unless_that_is_asked_for() -> None:
    asked, gpus = [wish(power_cap_w=250.0)], {0: gpu(0, cap_w=200.0)}
    refused = plan_caps(asked, gpus)
    assert refused.changes == ()
    assert "--allow-raise" in refused.problems[0]
    (change,) = plan_caps(asked, gpus, allow_raise=True).changes
    assert change.after == 250.0


def test_a_clock_that_is_not_supported_is_refused_with_those_near_it() -> None:
    plan = plan_caps([wish(sm_clock_mhz=1300)], {0: gpu(0)})
    assert plan.changes == ()
    assert "1200, 1500" in plan.problems[0]
    (change,) = plan_caps([wish(sm_clock_mhz=1200)], {0: gpu(0)}).changes
    assert (change.knob, change.before, change.after) == (Knob.SM_CLOCK, None, 1200)


def test_clocks_that_are_locked_already_are_said_to_be_lost() -> None:
    plan = plan_caps([wish(sm_clock_mhz=1200)], {0: gpu(0, reach_mhz=1500)})
    assert "reset" in plan.notices[0]
    assert plan_caps([wish(sm_clock_mhz=1200)], {0: gpu(0)}).notices == ()


@pytest.mark.parametrize(
    ("asked", "found", "message"),
    [
        (wish(power_cap_w=200.0), gpu(0, is_mig=True), "MIG"),
        (wish(index=3, power_cap_w=200.0), gpu(0), "there is no GPU 3 here; there are: 0"),
        (wish(power_cap_w=200.0), gpu(0, cap_w=None), "no power limit"),
        (wish(sm_clock_mhz=1200), gpu(0, sm_clocks_mhz=()), "no SM clock"),
        (wish(), gpu(0, least_w=None), "no power limit"),
    ],
)
def test_what_cannot_be_set_is_refused(asked: Wish, found: GpuState, message: str) -> None:
    plan = plan_caps([asked], {found.index: found})
    assert plan.changes == ()
    assert message in plan.problems[0]


def test_one_bad_gpu_is_a_problem_of_the_plan_and_the_others_stay_in_it() -> None:
    plan = plan_caps([wish(power_cap_w=200.0), wish(1, power_cap_w=20.0)], {0: gpu(0), 1: gpu(1)})
    assert (len(plan.changes), len(plan.problems)) == (1, 1)


def test_tiers_that_share_a_gpu_have_to_agree() -> None:
    tier_map = capped()
    prefill, decode = tier_map.tiers
    shared = replace(decode, gpu_ids=(0, 2, 3))
    both = replace(tier_map, tiers=(prefill, shared))
    asked = wishes(both, lambda _: True)
    assert "different power_cap_w: 200, 300" in plan_caps(asked, {0: gpu(0)}).problems[0]
    agreed = replace(both, tiers=(replace(prefill, power_cap_w=None), shared))
    assert wishes(agreed, lambda _: True)[0].power_cap_w == 200.0


def test_a_machine_under_two_names_is_not_capped_twice() -> None:
    twice = [wish(power_cap_w=200.0), replace(wish(power_cap_w=250.0), host="127.0.0.1")]
    assert "another name" in plan_caps(twice, {0: gpu(0)}).problems[0]


def test_another_order_of_gpus_is_refused() -> None:
    tier_map = capped()
    tiers = tuple(
        replace(tier, env={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) for tier in tier_map.tiers
    )
    asked = wishes(replace(tier_map, tiers=tiers), lambda _: True)
    assert "CUDA_DEVICE_ORDER" in asked[0].problems[0]


def test_wishes_can_be_read_without_a_gpu() -> None:
    assert describe([wish(power_cap_w=200.0, sm_clock_mhz=1200)]) == (
        "tier decode: GPU 0 of box: power cap 200 W",
        "tier decode: GPU 0 of box: SM clock 1200 MHz",
    )
