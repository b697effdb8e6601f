"""A tier map as something to simulate."""

from collections.abc import Iterable, Mapping

from conserve_sglang.core.errors import ConfigError, ProfileError
from conserve_sglang.core.tier import PolicyChoice, Tier, TierMap
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import dispatch_settings
from conserve_sglang.policy import make_policy
from conserve_sglang.profiles import Profile, shipped_profile, shipped_profiles
from conserve_sglang.profiles.knobs import with_knobs
from conserve_sglang.profiles.published import a40_qwen3_0_6b
from conserve_sglang.sim.deployment import Deployment
from conserve_sglang.sim.view import perf_model_of
from conserve_sglang.sim.worker_spec import SimWorkerSpec

DEFAULT_CHUNK_TOKENS = 2944
"""The paper's batched tokens a step; a tier's `chunked-prefill-size` takes its place."""
DEFAULT_KV_TOKENS = 308_448
"""The paper's pool of an A40."""
PREFERRED = ("measured", "published", "estimated")


def deployment_of(
    tier_map: TierMap,
    profiles: Mapping[str, Profile],
    policy: PolicyChoice,
    kv_capacity_tokens: int | None = None,
) -> Deployment:
    """Every worker of a tier map, with the unit costs of its tier's profile (see `profiles_of`).

    A tier's SGLang flags `max-total-tokens`, `chunked-prefill-size`, `max-running-requests` and
    `prefill-decode-interval` count; without the first, a worker's pool holds `kv_capacity_tokens`,
    or else what its profile says. A prefill tier with `disable-radix-cache` keeps no prompts.
    """
    perfs = {name: perf_model_of(profile) for name, profile in profiles.items()}
    workers = tuple(
        SimWorkerSpec(
            spec=WorkerSpec(
                worker_id=worker.worker_id,
                role=worker.role,
                tier=worker.tier,
                kv_capacity_tokens=_flag(
                    tier,
                    "max-total-tokens",
                    kv_capacity_tokens
                    or profiles[tier.name].kv_capacity_tokens
                    or DEFAULT_KV_TOKENS,
                ),
                max_context_tokens=tier.max_context_tokens,
            ),
            perf=perfs[tier.name],
            chunk_tokens=_flag(tier, "chunked-prefill-size", DEFAULT_CHUNK_TOKENS),
            max_running=_flag(tier, "max-running-requests", 256),
            prefill_decode_interval=_flag(tier, "prefill-decode-interval", 0, least=0),
            keeps_prompts=tier.sglang_flags.get("disable-radix-cache") is not True,
        )
        for worker in tier_map.workers
        for tier in (tier_map.tier_of(worker),)
    )
    settings = dispatch_settings(tier_map.router)
    return Deployment(workers=workers, policy=make_policy(policy), settings=settings)


def profiles_of(
    tier_map: TierMap, given: Iterable[Profile] = ()
) -> tuple[dict[str, Profile], tuple[str, ...]]:
    """The profile of each tier by its name, and what is played otherwise than it is, in words.

    Of the given profiles, then of the shipped ones, that of the tier's GPU, model and parallelism
    under its cap and clock; where that is none, one under the nearest higher cap with the knobs
    put on it. A GPU or a model nobody knows is played as the published A40 with Qwen3-0.6B.
    """
    given = tuple(given)
    shipped = tuple(shipped_profile(name) for name in shipped_profiles())
    found: dict[str, Profile] = {}
    notes: list[str] = []
    for tier in tier_map.tiers:
        model = tier_map.model.path
        profile = _fitting(tier, model, given) or _fitting(tier, model, shipped)
        if profile is None:
            profile = a40_qwen3_0_6b(300)
            notes.append(
                f"tier {tier.name}: no profile of {tier.gpu} with {tier_map.model.path}"
                f" (tp {tier.tp}); played as {profile.name}"
            )
        found[tier.name] = profile
    sharing = [tier.name for tier in tier_map.tiers if tier.share_gpus]
    if sharing:
        notes.append(
            f"tier {', '.join(sharing)}: share_gpus is not simulated; every worker is played as if"
            " its GPUs were its own"
        )
    return found, tuple(notes)


def alone_tier(tier_map: TierMap) -> str:
    """The tier whose worker conversations run alone on, to compare with: the first that
    prefills."""
    roles = (Role.PREFILL, Role.MIXED)
    return next((t.name for t in tier_map.tiers if t.role in roles), tier_map.tiers[0].name)


def _fitting(tier: Tier, model: str, known: Iterable[Profile]) -> Profile | None:
    """ConfigError when the tier's knobs are more than what any profile of its GPU tells of."""
    own = [
        profile
        for profile in known
        if profile.gpu.lower() == tier.gpu.lower()
        and profile.tp == tier.tp
        and _short(profile.model) == _short(model)
    ]
    if not own:
        return None
    own.sort(
        key=lambda profile: (
            profile.sm_clock_mhz != tier.sm_clock_mhz,
            PREFERRED.index(profile.provenance.kind),
            -_cap_w(profile),
        )
    )
    if tier.power_cap_w is None and tier.sm_clock_mhz is None:
        return own[0]
    cap_w = _cap_w(own[0]) if tier.power_cap_w is None else tier.power_cap_w
    for profile in own:
        if _cap_w(profile) == cap_w and profile.sm_clock_mhz == tier.sm_clock_mhz:
            return profile
    above = [one for one in own if _cap_w(one) >= cap_w and _is_as_fast(one, tier.sm_clock_mhz)]
    try:
        return with_knobs(
            min(above, key=_cap_w) if above else own[0],
            power_cap_w=tier.power_cap_w,
            sm_clock_mhz=tier.sm_clock_mhz,
        )
    except ProfileError as error:
        raise ConfigError(f"tier {tier.name}: {error}") from error


def _is_as_fast(profile: Profile, sm_clock_mhz: int | None) -> bool:
    now = profile.sm_clock_mhz
    return now is None or (sm_clock_mhz is not None and now >= sm_clock_mhz)


def _cap_w(profile: Profile) -> float:
    return profile.power_cap_w or profile.tdp_w or 0.0


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def _flag(tier: Tier, name: str, default: int, least: int = 1) -> int:
    value = tier.sglang_flags.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"tier {tier.name}: {name}: {value!r} is no number from {least} on")
    return value
