"""Hardware, demands and fleets to plan with."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.equipping import hardware_of
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.inventory import GpuTier, Host, Inventory
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.request import Request, Targets
from conserve_sglang.profiles import shipped_profile, shipped_profiles
from conserve_sglang.sim import A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W
from conserve_sglang.workload import ConversationPlan, mini_swe_conversations

CONSERVE = Variant(
    policy=PolicyChoice(name="conserve", params={"max_local_append_tokens": 2048}),
    roles=frozenset({Role.PREFILL, Role.DECODE}),
    max_local_append_tokens=2048,
    kept_gap_s=None,
)
COLOCATED = Variant(
    policy=PolicyChoice(name="colocated", params={}),
    roles=frozenset({Role.MIXED}),
    max_local_append_tokens=None,
    kept_gap_s=None,
)
A40 = Hardware(
    tier="a40",
    tp=1,
    power_cap_w=None,
    sm_clock_mhz=None,
    profile="a40-qwen3-0.6b-300w",
    perf=A40_QWEN3_0_6B,
    peak_w=300.0,
    rated_w=300.0,
    kv_capacity_tokens=308_448,
)
A40_200W = replace(
    A40,
    power_cap_w=200.0,
    profile="a40-qwen3-0.6b-200w",
    perf=A40_QWEN3_0_6B_200W,
    peak_w=200.0,
)


INVENTORY = Inventory(
    model="Qwen/Qwen3-0.6B",
    tiers=(
        GpuTier(
            name="a40",
            gpu="A40",
            hosts=(Host(name="a40-box", gpu_ids=(0, 1, 2, 3)),),
            power_caps_w=(None, 200.0),
        ),
        GpuTier(
            name="l4",
            gpu="L4",
            hosts=(Host(name="l4-box", gpu_ids=(0, 1, 2, 3)),),
            power_caps_w=(None, 50.0),
        ),
    ),
)


@cache
def hardware() -> tuple[Hardware, ...]:
    """What the shipped profiles make of `INVENTORY`."""
    return hardware_of(INVENTORY, [shipped_profile(name) for name in shipped_profiles()])


def a_request(rate_per_s: float = 0.5, **changes: Any) -> Request:
    """The paper's conversations on `INVENTORY`."""
    request = Request(
        inventory=INVENTORY,
        hardware=hardware(),
        load=Load(
            conversations=tuple(conversations(200)),
            rate_per_s=rate_per_s,
            has_own_times=False,
            seed=0,
            source="made up",
        ),
        targets=Targets(ttfet_s=60.0, tbt_s=0.05),
        fewest=300,
    )
    return replace(request, **changes)


def few_a40(num_gpus: int, caps: tuple[float | None, ...] = (None,), **changes: Any) -> Request:
    """The same on one host of A40, as delivered or under `caps`."""
    hosts = (Host(name="a40-box", gpu_ids=tuple(range(num_gpus))),)
    tier = replace(INVENTORY.tiers[0], hosts=hosts, power_caps_w=caps)
    own = tuple(one for one in hardware() if one.tier == "a40" and one.power_cap_w in caps)
    return a_request(inventory=replace(INVENTORY, tiers=(tier,)), hardware=own, **changes)


def conversations(count: int, seed: int = 1) -> Sequence[ConversationPlan]:
    """Conversations like the paper's."""
    return list(mini_swe_conversations(count, random.Random(seed)))
