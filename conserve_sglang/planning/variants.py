"""The policies worth planning for, and what each makes of a workload."""

from collections.abc import Iterator

from conserve_sglang.core.tier import FlagValue, PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Demand, Variant, demand_of, thinned
from conserve_sglang.planning.request import Request

APPEND_THRESHOLDS = (512, 2048, 8192)
"""Values of `max_local_append_tokens` that are tried."""
LET_GO_AFTER_S = 15.0
"""`reclaim_idle_s` of the router: who waits for KV room takes that of conversations idle longer."""
PD = frozenset({Role.PREFILL, Role.DECODE})


def demands_of(request: Request) -> tuple[Demand, ...]:
    """One demand for each variant that asks for something different, and whose roles the GPUs may
    have; usual parameters come first."""
    plans = thinned(request.load.conversations)
    found: list[Demand] = []
    for variant in _variants(request):
        demand = demand_of(plans, variant)
        roles = variant.roles
        if not any(demand.works == other.works and roles == other.variant.roles for other in found):
            found.append(demand)
    return tuple(found)


def _variants(request: Request) -> Iterator[Variant]:
    gaps = [turn.gap_s for plan in request.load.conversations for turn in plan.turns]
    kept: tuple[float | None, ...] = (None,)
    if any(gap > LET_GO_AFTER_S for gap in gaps):
        kept = (None, LET_GO_AFTER_S)
    roles = {role for role in Role if any(request.allows(one, role) for one in request.hardware)}
    for kept_gap_s in kept:
        if roles >= PD:
            for threshold in sorted(APPEND_THRESHOLDS, key=lambda tokens: tokens != 2048):
                yield Variant(
                    policy=PolicyChoice(
                        name="conserve", params={"max_local_append_tokens": threshold}
                    ),
                    roles=PD,
                    max_local_append_tokens=threshold,
                    kept_gap_s=kept_gap_s,
                )
        if Role.MIXED in roles:
            yield Variant(
                policy=PolicyChoice(name="colocated", params={}),
                roles=frozenset({Role.MIXED}),
                max_local_append_tokens=None,
                kept_gap_s=kept_gap_s,
            )


def policies_for(variant: Variant, tbt_s: float | None) -> tuple[PolicyChoice, ...]:
    """Policies that may run on a fleet planned for a variant, its own first. All of them run on
    real servers."""
    if variant.max_local_append_tokens is None:
        backlog = PolicyChoice(name="colocated", params={"choose": "least_backlog"})
        return (variant.policy, backlog, PolicyChoice(name="work-conserving", params={}))
    threshold = {"max_local_append_tokens": variant.max_local_append_tokens}
    spilling = PolicyChoice(name="work-conserving", params=dict(threshold))
    if tbt_s is None:
        return (variant.policy, spilling)
    packing: dict[str, FlagValue] = {**threshold, "tbt_target_s": tbt_s}
    return (variant.policy, spilling, PolicyChoice(name="conserve-pack", params=packing))
