"""The power caps and clocks of a tier map, as a launch or `conserve-sglang caps` sees them."""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from conserve_sglang.core.errors import CapsError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.energy.holding import KEY_VARIABLE, SOCKET_VARIABLE, Holding
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.launcher.here import host_test
from conserve_sglang.power.caps import CapPlan, Wish, describe, plan_caps, wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsShown:
    """What would be set: on other machines as asked for, here compared with the GPUs.

    `plan` is None where this machine has no wish, or no GPU to compare it with; `why_not` then
    says why.
    """

    elsewhere: tuple[str, ...]
    here: tuple[str, ...]
    plan: CapPlan | None
    why_not: str | None = None


def is_controlled(tier_map: TierMap) -> bool:
    """Whether the router moves caps to keep a budget, so that all GPUs are to be in hand."""
    return tier_map.has_budget and tier_map.energy is not None


def caps_here(tier_map: TierMap, host: str | None) -> tuple[Wish, ...]:
    """What the tier map asks for on this machine."""
    return wishes(tier_map, host_test(host), for_control=is_controlled(tier_map))


def show_caps(tier_map: TierMap, host: str | None, *, allow_raise: bool = False) -> CapsShown:
    """Plan without a write; it needs no GPU."""
    is_here = host_test(host)
    asked = wishes(tier_map, is_here, for_control=is_controlled(tier_map))
    elsewhere = describe(wishes(tier_map, lambda name: not is_here(name)))
    if not asked:
        return CapsShown(elsewhere=elsewhere, here=(), plan=None)
    try:
        knobs = Knobs()
    except CapsError as error:
        return CapsShown(elsewhere=elsewhere, here=describe(asked), plan=None, why_not=str(error))
    try:
        plan = plan_caps(asked, knobs.look(), allow_raise=allow_raise)
    finally:
        knobs.close()
    return CapsShown(elsewhere=elsewhere, here=describe(asked), plan=plan)


def hold_caps(
    asked: tuple[Wish, ...], tell: Callable[[str], None], *, allow_raise: bool = False
) -> Holding | None:
    """Set what is asked for and hold it; None if nothing is. Raises `CapsError`."""
    if not asked:
        return None
    holding = Holding(asked, tell, allow_raise=allow_raise)
    # For the agent, and the key for the router too, which are children of ours.
    os.environ[SOCKET_VARIABLE] = holding.socket_path
    os.environ[KEY_VARIABLE] = secrets.token_urlsafe(32)
    for line in (*holding.changed, *holding.notices):
        tell(f"power caps: {line}")
    return holding
