"""A profile as the simulator's unit costs: its points put into closed form, with the error of that.

Prefill keeps the profile's own uncached points; a decode step becomes affine in requests and KV
tokens; a prefix hit, a KV move and what a turn takes beside these become straight lines between
points.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import FrontPoint, PrefillPoint, Profile
from conserve_sglang.profiles.affine import fit_affine
from conserve_sglang.profiles.published import a40_qwen3_0_6b
from conserve_sglang.sim.perf_model import PerfModel, PowerModel

NO_TRANSFER_S = 5e-3
"""What a KV move is taken to cost where a profile has none (assumed: the A40's least)."""


def perf_model_of(profile: Profile) -> PerfModel:
    """The view. Raises ProfileError for a profile without uncached prefill of a lone prompt.

    Prefill times that fall with the length, as noise may have it, are raised to the one before.
    """
    whole = _rising(
        sorted((p for p in profile.prefill if p.batch == 1 and p.cached_tokens == 0), key=_length)
    )
    if not whole:
        raise ProfileError(
            f"profile {profile.name}: the simulator needs prefill points of a lone prompt with"
            " nothing cached"
        )
    hits = _hits(profile.prefill) or [whole[0]]
    decode = fit_affine([(p.batch, p.kv_tokens, p.step_s) for p in profile.decode])
    moves = sorted(profile.transfer, key=lambda point: point.tokens)
    model = PerfModel(
        name=profile.name,
        decode_step_s=decode.base,
        decode_s_per_request=decode.first,
        decode_s_per_kv_token=decode.second,
        prefill_tokens=tuple(point.new_tokens for point in whole),
        prefill_s=tuple(point.seconds for point in whole),
        append_tokens=tuple(point.cached_tokens + point.new_tokens for point in hits),
        append_floor_s=tuple(point.seconds for point in hits),
        append_share=0.0,
        transfer_tokens=tuple(point.tokens for point in moves) or (1,),
        transfer_times_s=tuple(point.seconds for point in moves) or (NO_TRANSFER_S,),
        most_batch=max((p.batch for p in profile.decode), default=0),
        most_kv_tokens=max((p.kv_tokens for p in profile.decode), default=0),
        most_append_tokens=max((_length(p) for p in profile.prefill if p.cached_tokens), default=0),
        power=_power_of(profile, whole, hits),
        is_estimated=profile.is_estimated,
        sources=_sources(profile),
    )
    return _with_share(_with_fronts(model, profile), profile, decode.median_error)


def _with_fronts(model: PerfModel, profile: Profile) -> PerfModel:
    """What turns take beside their workers' steps, where the profile tells it.

    A handoff point holds all of that, the request and the KV's move among it. What is not known is
    0, so that nothing is charged twice or made up.
    """
    request, handoff = _by_tokens(profile.request), _by_tokens(profile.handoff)
    unknown = [name for name, points in (("request", request), ("handoff", handoff)) if not points]
    if profile.first_handoff_s is None:
        unknown.append("first_handoff")
    if request:
        model = replace(
            model,
            request_tokens=tuple(point.tokens for point in request),
            request_times_s=tuple(point.seconds for point in request),
        )
    if handoff:
        model = replace(
            model,
            handoff_tokens=tuple(point.tokens for point in handoff),
            handoff_times_s=tuple(
                max(0.0, p.seconds - model.request_s(p.tokens) - model.transfer_s(p.tokens))
                for p in handoff
            ),
        )
    return replace(model, first_handoff_s=profile.first_handoff_s or 0.0, unknown=tuple(unknown))


def _by_tokens(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    return sorted(points, key=lambda point: point.tokens)


def _with_share(model: PerfModel, profile: Profile, decode_error: float) -> PerfModel:
    """How much of the lesser part of an append counts, as the profile's appends have it."""
    above, below = 0.0, 0.0
    appends = [p for p in profile.prefill if p.batch == 1 and p.cached_tokens > 0]
    for point in appends:
        tokens = point.cached_tokens + point.new_tokens
        added = model.whole_prefill(tokens) - model.whole_prefill(point.cached_tokens)
        least = model.append_floor(tokens)
        lesser = min(added, least) / point.seconds
        above += lesser * (1 - max(added, least) / point.seconds)
        below += lesser * lesser
    share = min(1.0, max(0.0, above / below)) if below > 0 else 0.0
    share = share if share > 1e-6 else 0.0
    model = replace(model, append_share=share)
    errors = {"decode": decode_error}
    if appends:
        errors["append prefill"] = median(
            abs(model.prefill(p.cached_tokens, p.cached_tokens + p.new_tokens) / p.seconds - 1)
            for p in appends
        )
    return replace(model, errors=errors)


def _power_of(
    profile: Profile, whole: Sequence[PrefillPoint], hits: Sequence[PrefillPoint]
) -> PowerModel | None:
    """None where the profile lacks watts of any point that is needed, or of idling."""
    if profile.idle_w is None or any(p.watts is None for p in (*whole, *hits)):
        return None
    samples = [
        (p.batch, p.kv_tokens, p.watts * p.step_s * profile.tp)
        for p in profile.decode
        if p.watts is not None
    ]
    if len(samples) < len(profile.decode):
        return None
    decode = fit_affine(samples)
    return PowerModel(
        idle_w=profile.idle_w * profile.tp,
        decode_step_j=decode.base,
        decode_j_per_request=decode.first,
        decode_j_per_kv_token=decode.second,
        prefill_j=tuple(p.seconds * (p.watts or 0.0) * profile.tp for p in whole),
        append_floor_j=tuple(p.seconds * (p.watts or 0.0) * profile.tp for p in hits),
    )


def _length(point: PrefillPoint) -> int:
    return point.cached_tokens + point.new_tokens


def _hits(points: Sequence[PrefillPoint]) -> list[PrefillPoint]:
    """Of each cached length the point with fewest new tokens, by length of the context."""
    least: dict[int, PrefillPoint] = {}
    for point in points:
        if point.batch == 1 and point.cached_tokens > 0:
            known = least.get(point.cached_tokens)
            if known is None or point.new_tokens < known.new_tokens:
                least[point.cached_tokens] = point
    return sorted(least.values(), key=_length)


def _rising(points: Sequence[PrefillPoint]) -> list[PrefillPoint]:
    found: list[PrefillPoint] = []
    for point in points:
        least = found[-1].seconds if found else 0.0
        found.append(point if point.seconds >= least else replace(point, seconds=least))
    return found


def _sources(profile: Profile) -> dict[str, str]:
    times = f"{profile.provenance.kind}: {profile.provenance.source}"
    power = profile.power_provenance
    watts = "not known" if power is None else f"{power.kind}: {power.source}"
    return {"times": times, "watts": watts}


A40_QWEN3_0_6B = perf_model_of(a40_qwen3_0_6b(300))
"""arXiv 2606.01839's A40, vLLM in eager mode; with CUDA graphs the decode floor would be lower."""

A40_QWEN3_0_6B_200W = perf_model_of(a40_qwen3_0_6b(200))
"""The same GPU capped at 200 W."""
