"""Turns what was measured into a profile."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.energy.meter import Origin
from conserve_sglang.profiler.facts import dtype_of, graph_mode
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.measure_first import NUM_LATER
from conserve_sglang.profiler.outcome import Outcome, surest
from conserve_sglang.profiler.point import Sweep
from conserve_sglang.profiler.power_source import PowerSource
from conserve_sglang.profiler.stand import Stand
from conserve_sglang.profiles import (
    DecodePoint,
    FrontPoint,
    GraphMode,
    PrefillPoint,
    Profile,
    Provenance,
    TransferPoint,
)

METHOD = (
    "conserve-sglang profile: medians with exact 95 % confidence intervals; prefill from the"
    " scheduler's start of a batch to its result, decode by the token gaps of one request of the"
    " batch, transfer from the end of prefill to the prefiller's answer, request and handoff from"
    " the client's request to its first token less the prefill"
)
_NARROW, _NARROWEST = 0.03, 1e-6


def assemble(
    name: str,
    tier_map: TierMap,
    stand: Stand,
    journal: Journal,
    source: PowerSource,
    *,
    machine: Mapping[str, str],
) -> Profile:
    """The profile of what is in the journal. Raises `ConfigError` without prefill and decode."""
    good = [one for one in surest(journal.outcomes).values() if one.seconds is not None]
    _check_phases(good)
    info: Mapping[str, Any] = next(iter(stand.infos.values()))
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    has_watts = any(one.watts is not None for one in good)
    return Profile(
        name=name,
        gpu=stand.tier.gpu,
        model=tier_map.model.served_name,
        dtype=dtype_of(info),
        engine="sglang",
        engine_version=str(info.get("version") or "unknown"),
        graph_mode="none" if stand.tier.is_cpu else _graph(graph_mode(stand.tier, info)),
        tp=stand.tier.tp,
        power_cap_w=stand.tier.power_cap_w,
        sm_clock_mhz=stand.tier.sm_clock_mhz,
        idle_w=journal.idle_w if has_watts else None,
        kv_bytes_per_token=_rounded(stand.kv_bytes_per_token),
        kv_capacity_tokens=stand.limits.kv_capacity_tokens,
        chunk_tokens=stand.limits.chunk_tokens,
        first_handoff_s=journal.first_handoff_s,
        provenance=Provenance(
            kind="measured",
            source=_method(good, journal.first_handoffs_s),
            date=today,
            machine=dict(machine),
            error=_error(good),
        ),
        power_provenance=_power(source, today, machine) if has_watts else None,
        prefill=tuple(_prefill(good)),
        decode=tuple(_decode(good)),
        transfer=tuple(_transfer(good)),
        request=tuple(_front(good, Sweep.REQUEST)),
        handoff=tuple(_front(good, Sweep.HANDOFF)),
    )


def _check_phases(outcomes: Sequence[Outcome]) -> None:
    sweeps = {one.point.sweep for one in outcomes}
    if not {Sweep.PREFILL.value, Sweep.DECODE.value} <= sweeps:
        raise ConfigError(
            f"a profile needs prefill and decode points, and there are {len(outcomes)} of"
            f" {', '.join(sorted(sweeps)) or 'nothing'}: give it more time (--minutes), or workers"
            " of both roles; what was measured is kept"
        )


def _rounded(number: float | None) -> int | None:
    return None if number is None else round(number)


def _graph(told: str) -> GraphMode:
    return "eager" if told == "eager" else "cuda-graph"


def _method(outcomes: Sequence[Outcome], firsts_s: Sequence[float]) -> str:
    method = METHOD + _of_first_handoffs(firsts_s)
    if all(one.clock == "scheduler" for one in outcomes):
        return method
    return method + "; without the scheduler's stamps as its client saw it, HTTP included"


def _of_first_handoffs(found_s: Sequence[float]) -> str:
    """What they are, and how far starts of the workers lie apart."""
    if not found_s:
        return ""
    starts = "1 start" if len(found_s) == 1 else f"the median of {len(found_s)} starts"
    told = f"; first handoff of a pair less the median of its next {NUM_LATER}, {starts}"
    if len(found_s) == 1:
        return told
    return f"{told}, {1e3 * min(found_s):.1f} to {1e3 * max(found_s):.1f} ms"


def _error(outcomes: Sequence[Outcome]) -> str:
    """How many of the points are as sure as they were meant to be."""
    cis = [one.rel_ci for one in outcomes]
    num_narrow = sum(ci is not None and ci < _NARROW for ci in cis)
    known = sorted(ci for ci in cis if ci is not None)
    worst = f", the widest {100 * known[-1]:.0f} %" if known else ""
    return (
        f"half-width of the confidence interval below {100 * _NARROW:g} % at {num_narrow} of"
        f" {len(cis)} points{worst}"
    )


def _power(source: PowerSource, today: str, machine: Mapping[str, str]) -> Provenance | None:
    track = source.track
    if track is None:
        return None
    is_measured = track.origin is Origin.MEASURED
    return Provenance(
        kind="measured" if is_measured else "estimated",
        source=track.source,
        date=today,
        machine=dict(machine),
        error=None if is_measured else "not known: no meter here to compare with",
    )


def _above_zero(rel_ci: float | None) -> float | None:
    """Repeats that are all equal have an interval without width, and a profile's has some."""
    return None if rel_ci is None else max(rel_ci, _NARROWEST)


def _prefill(outcomes: Iterable[Outcome]) -> Iterable[PrefillPoint]:
    found = [
        PrefillPoint(
            new_tokens=one.point.new_tokens,
            cached_tokens=one.point.cached_tokens,
            batch=one.point.batch,
            seconds=one.seconds,
            watts=one.watts,
            rel_ci=_above_zero(one.rel_ci),
        )
        for one in outcomes
        if one.point.sweep in (Sweep.PREFILL.value, Sweep.APPEND.value) and one.seconds
    ]
    return sorted(found, key=lambda p: (p.batch, p.cached_tokens, p.new_tokens))


def _decode(outcomes: Iterable[Outcome]) -> Iterable[DecodePoint]:
    found = [
        DecodePoint(
            batch=one.point.batch,
            kv_tokens=one.kv_tokens or one.point.kv_tokens,
            step_s=one.seconds,
            watts=one.watts,
            rel_ci=_above_zero(one.rel_ci),
        )
        for one in outcomes
        if one.point.sweep == Sweep.DECODE.value and one.seconds
    ]
    return sorted(found, key=lambda p: (p.batch, p.kv_tokens))


def _transfer(outcomes: Iterable[Outcome]) -> Iterable[TransferPoint]:
    found = [
        TransferPoint(tokens=one.point.new_tokens, seconds=one.seconds)
        for one in outcomes
        if one.point.sweep == Sweep.TRANSFER.value and one.seconds
    ]
    return sorted(found, key=lambda p: p.tokens)


def _front(outcomes: Iterable[Outcome], sweep: Sweep) -> Iterable[FrontPoint]:
    found = [
        FrontPoint(tokens=one.point.new_tokens, seconds=one.seconds, rel_ci=_above_zero(one.rel_ci))
        for one in outcomes
        if one.point.sweep == sweep.value and one.seconds
    ]
    return sorted(found, key=lambda p: p.tokens)
