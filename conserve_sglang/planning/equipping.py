"""From profiles and an inventory to hardware: each tier's GPUs under each knob that is allowed."""

from collections.abc import Iterable, Iterator, Sequence

from conserve_sglang.core.errors import PlanError, ProfileError
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.inventory import GpuTier, Inventory, lacking_roles
from conserve_sglang.profiles import Profile
from conserve_sglang.profiles.knobs import with_knobs
from conserve_sglang.sim import perf_model_of
from conserve_sglang.sim.from_tier_map import DEFAULT_CHUNK_TOKENS

CAP_SHARES = (0.9, 0.8, 0.7, 0.6)
"""Caps that are tried where the inventory names none, as shares of the rated power; not below what
the card accepts, where that is known."""


def hardware_of(inventory: Inventory, profiles: Sequence[Profile]) -> tuple[Hardware, ...]:
    """Every way to equip a worker. Raises PlanError if no tier has a profile of its GPU and the
    inventory's model, or one has no watts or no KV room, or none that its caps and sizes leave; and
    if the roles of those that have one leave nothing that serves."""
    without = tiers_without(inventory, profiles)
    known = [tier for tier in inventory.tiers if tier.name not in without]
    if not known:
        wanted = sorted({tier.gpu for tier in inventory.tiers})
        raise PlanError(
            f"none of the profiles is of {' or '.join(wanted)} with {inventory.model};"
            " give some with --profiles (conserve-sglang profiles lists those that are shipped,"
            " conserve-sglang profile measures one)"
        )
    if lacking := lacking_roles(known):
        raise PlanError(f"the inventory cannot serve: {lacking}")
    return tuple(one for tier in known for one in _of_tier(inventory, tier, profiles))


def tiers_without(inventory: Inventory, profiles: Sequence[Profile]) -> tuple[str, ...]:
    """Tiers that cannot be planned with, for want of a profile."""
    return tuple(
        tier.name for tier in inventory.tiers if not list(_fitting(inventory, tier, profiles))
    )


def _of_tier(
    inventory: Inventory, tier: GpuTier, profiles: Sequence[Profile]
) -> Iterator[Hardware]:
    largest = max(len(host.gpu_ids) for host in tier.hosts)
    fitting = list(_fitting(inventory, tier, profiles))
    sized = [one for one in fitting if one.tp <= largest and one.tp in (tier.tps or (one.tp,))]
    if not sized:
        raise PlanError(_no_size(tier, fitting, largest))
    seen: set[tuple[int, float | None, int | None]] = set()
    had: set[float | None] = set()
    for profile in sized:
        for capped in _under_caps(tier, profile):
            had.add(capped.power_cap_w or capped.tdp_w)
            knobs = (capped.tp, capped.power_cap_w, capped.sm_clock_mhz)
            if knobs not in seen:
                seen.add(knobs)
                yield _hardware(tier, capped, profile.name)
    if lost := [cap for cap in tier.power_caps_w or () if cap is not None and cap not in had]:
        raise PlanError(
            f"tier {tier.name}: power_caps_w: no profile tells what the {tier.gpu} does at"
            f" {', '.join(f'{cap:g}' for cap in lost)} W: that is above the power it was taken at,"
            " or below what the GPU draws while it waits; leave it out"
        )


def _no_size(tier: GpuTier, fitting: Sequence[Profile], largest: int) -> str:
    sizes = ", ".join(map(str, sorted({one.tp for one in fitting})))
    allowed = "any tp" if tier.tps is None else f"tp: [{', '.join(map(str, tier.tps))}]"
    return (
        f"tier {tier.name}: its profiles are of workers with {sizes} GPUs (tp); its largest host"
        f" has {largest}, and the inventory allows {allowed}. Give other profiles with --profiles,"
        " or leave the tier out"
    )


def _fitting(inventory: Inventory, tier: GpuTier, profiles: Iterable[Profile]) -> Iterator[Profile]:
    """Profiles of a tier's GPU and the model; measured ones come before others."""
    order = ("measured", "published", "estimated")
    own = [
        profile
        for profile in profiles
        if profile.gpu.lower() == tier.gpu.lower() and _is_model(profile.model, inventory.model)
    ]
    yield from sorted(own, key=lambda profile: order.index(profile.provenance.kind))


def _is_model(one: str, other: str) -> bool:
    return (
        one.rstrip("/").rsplit("/", 1)[-1].lower() == other.rstrip("/").rsplit("/", 1)[-1].lower()
    )


def _under_caps(tier: GpuTier, profile: Profile) -> Iterator[Profile]:
    """The profile as it is, and under lower caps: those of the inventory, else a few."""
    rated = profile.tdp_w or profile.power_cap_w
    now = profile.power_cap_w or rated
    if tier.power_caps_w is None:
        wanted: list[float | None] = [now]
        if rated is not None:
            caps = [float(round(rated * share)) for share in CAP_SHARES]
            wanted += [cap for cap in caps if cap >= (tier.least_cap_w or 0.0)]
    else:
        wanted = [now if cap is None else cap for cap in tier.power_caps_w]
    for cap in wanted:
        if cap is None or now is None or cap == now:
            yield profile
        elif cap < now:
            try:
                yield with_knobs(profile, power_cap_w=cap)
            except ProfileError:
                continue  # below what the GPU draws while it waits


def _hardware(tier: GpuTier, profile: Profile, base: str) -> Hardware:
    pool = _pool(tier, profile)
    perf = perf_model_of(profile)
    if perf.power is None:
        raise PlanError(f"profile {profile.name} lacks watts; without them no power can be planned")
    rated = profile.tdp_w
    cap = profile.power_cap_w
    peak = cap if cap is not None else rated
    if peak is None:
        raise PlanError(f"profile {profile.name} says neither tdp_w nor power_cap_w")
    return Hardware(
        tier=tier.name,
        tp=profile.tp,
        power_cap_w=None if cap is None or cap == rated else cap,
        sm_clock_mhz=profile.sm_clock_mhz,
        profile=base,
        perf=perf,
        peak_w=peak,
        rated_w=rated,
        kv_capacity_tokens=pool,
        chunk_tokens=_flag(tier, "chunked-prefill-size") or DEFAULT_CHUNK_TOKENS,
        max_running=_flag(tier, "max-running-requests") or 256,
    )


def _pool(tier: GpuTier, profile: Profile) -> int:
    pool = _flag(tier, "max-total-tokens") or tier.kv_capacity_tokens or profile.kv_capacity_tokens
    if pool is None:
        raise PlanError(
            f"tier {tier.name}: its profile {profile.name} does not say how many KV tokens it"
            " holds; write kv_capacity_tokens into the inventory"
        )
    return pool


def _flag(tier: GpuTier, name: str) -> int | None:
    value = tier.sglang_flags.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise PlanError(f"tier {tier.name}: {name}: {value!r} is not a positive number")
    return value
