"""Which caps and clocks there are to choose from, and what becomes of a chosen one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.errors import PlanError
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Targets, hardware_of
from conserve_sglang.planning.inventory import GpuTier, Host, Inventory
from conserve_sglang.planning.shortlist import problems_of
from conserve_sglang.planning.tier_map import checked, tier_map_text
from conserve_sglang.profiles import Profile, shipped_profile
from conserve_sglang.profiles.hardware import GPUS
from conserve_sglang.profiles.knobs import with_knobs
from conserve_sglang.sim import profiles_of
from tests.planning.builders import a_request

WHOLE = shipped_profile("a40-qwen3-0.6b-300w")
MEASURED = replace(WHOLE.provenance, kind="measured", source="a stand-in for a measurement")
CLOCKED = replace(
    with_knobs(WHOLE, sm_clock_mhz=1200), name="a40-at-1200", provenance=MEASURED
)  # fmt: skip


def an_inventory(gpu: str = "A40", **changes: Any) -> Inventory:
    tier = GpuTier(name="gpus", gpu=gpu, hosts=(Host(name="box", gpu_ids=(0, 1, 2, 3)),))
    return Inventory(
        model="Qwen/Qwen3-0.6B",
        tiers=(replace(tier, **changes),),
    )


def caps_of(inventory: Inventory, *profiles: Profile) -> list[float | None]:
    return [one.power_cap_w for one in hardware_of(inventory, profiles)]


def test_caps_that_a_card_would_refuse_are_not_tried() -> None:
    assert caps_of(an_inventory(), WHOLE) == [None, 270, 240, 210, 180]
    assert caps_of(an_inventory(least_cap_w=200.0), WHOLE) == [None, 270, 240, 210]
    assert caps_of(an_inventory(least_cap_w=300.0), WHOLE) == [None]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_the_least_cap_of_a_known_card_is_below_its_rated_power(gpu: object) -> None:
    known = GPUS[getattr(gpu, "name")]  # noqa: B009 - ids need the object
    assert known.least_cap_w is None or known.tdp_w * 0.2 < known.least_cap_w < known.tdp_w


def test_profiles_that_differ_in_the_clock_alone_are_two_choices() -> None:
    inventory = an_inventory(power_caps_w=(None,))
    both = hardware_of(inventory, [CLOCKED, WHOLE])
    assert [(one.sm_clock_mhz, one.profile) for one in both] == [
        (1200, "a40-at-1200"),
        (None, WHOLE.name),
    ]
    request = replace(
        a_request(0.5, targets=Targets(ttfet_s=60.0)), inventory=inventory, hardware=both
    )
    for _, problem in problems_of(request):
        for role in problem.roles:
            clocks = {c.config.sm_clock_mhz for c in problem.columns if c.config.role is role}
            assert clocks == {None, 1200}


def test_a_chosen_clock_is_set_by_the_map_and_played_by_the_profile_taken_at_it() -> None:
    inventory = an_inventory(power_caps_w=(None,))
    both = hardware_of(inventory, [WHOLE, CLOCKED])
    request = replace(a_request(0.5), inventory=inventory, hardware=both)
    clocked = next(one for one in both if one.sm_clock_mhz)
    counts = {
        clocked.config(Role.DECODE): 2,
        next(one for one in both if not one.sm_clock_mhz).config(Role.PREFILL): 1,
    }
    text = tier_map_text(request, counts, PolicyChoice(name="conserve", params={}))
    tier_map = checked(text, source="planned", folder=Path())
    assert {tier.role: tier.sm_clock_mhz for tier in tier_map.tiers} == {
        Role.PREFILL: None,
        Role.DECODE: 1200,
    }
    found, notes = profiles_of(tier_map, [CLOCKED, WHOLE])
    assert {name: profile.name for name, profile in found.items()} == {
        "gpus-prefill": WHOLE.name,
        "gpus-decode": "a40-at-1200",
    }
    assert notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roles": (Role.PREFILL,)}, "allowed are gpus: prefill"),
        ({"tps": (4,)}, r"workers with 1 GPUs .* the inventory allows tp: \[4\]"),
        ({"power_caps_w": (None, 900.0)}, "no profile tells what the A40 does at 900 W"),
        ({"power_caps_w": (20.0,)}, "no profile tells what the A40 does at 20 W"),
    ],
)
def test_what_leaves_no_choice_is_told_as_what_it_is(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        hardware_of(an_inventory(**changes), [WHOLE])


def test_a_cap_may_come_from_any_of_the_profiles() -> None:
    capped = shipped_profile("a40-qwen3-0.6b-200w")
    inventory = an_inventory(power_caps_w=(250.0, 200.0))
    assert sorted(caps_of(inventory, capped, WHOLE), key=str) == [200, 250]
