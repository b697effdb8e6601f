"""Hardware, demands and fleets to plan with."""

import random
from collections.abc import Sequence
from dataclasses import replace

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.hardware import Hardware
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
    profile="a40",
    perf=A40_QWEN3_0_6B,
    prefill_w=lambda _new, _cached: (290.0, False),
    decode_w=lambda batch, _kv: (150.0 + batch, False),
    idle_w=75.0,
    peak_w=300.0,
    kv_capacity_tokens=308_448,
)
A40_200W = replace(
    A40,
    power_cap_w=200.0,
    profile="a40-200w",
    perf=A40_QWEN3_0_6B_200W,
    prefill_w=lambda _new, _cached: (200.0, False),
    peak_w=200.0,
)


def conversations(count: int, seed: int = 1) -> Sequence[ConversationPlan]:
    """Conversations like the paper's."""
    return list(mini_swe_conversations(count, random.Random(seed)))
