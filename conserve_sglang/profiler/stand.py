"""The workers that are measured: found in a tier map, started or attached to, and what they are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conserve_sglang.core.errors import ConfigError, NotCapable
from conserve_sglang.core.tier import Tier, TierMap, WorkerPlan
from conserve_sglang.core.worker import Role
from conserve_sglang.profiler.facts import context_tokens, num_token_ids
from conserve_sglang.profiler.grid import Limits
from conserve_sglang.profiler.measure_decode import DecodeMeasure
from conserve_sglang.profiler.measure_first import first_handoff_s
from conserve_sglang.profiler.measure_front import HandoffMeasure, RequestMeasure
from conserve_sglang.profiler.measure_prefill import PrefillMeasure
from conserve_sglang.profiler.measure_transfer import TransferMeasure
from conserve_sglang.profiler.point import Sweep
from conserve_sglang.profiler.power import PowerTrack
from conserve_sglang.profiler.sweep import Measure
from conserve_sglang.profiler.talk import Talker

_ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE, "null": Role.MIXED}
_CHUNK_TOKENS = 2048  # of a worker that does not tell: SGLang's own on a small GPU
_STAMPS = {"enable-metrics": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Workers of one kind of GPU, by role. `infos` are what each tells of itself."""

    tier: Tier
    talkers: dict[Role, Talker]
    infos: dict[Role, dict[str, Any]]
    limits: Limits
    is_ours: bool
    kv_bytes_per_token: float | None

    def measures(self, power: PowerTrack | None) -> dict[Sweep, Measure]:
        """What can be measured on these workers, by sweep.

        Prompts are prefilled by a prefiller where there is one; appends where a conversation
        lives. A transfer needs both, and that nobody else uses them: they are emptied. A handoff
        needs both, and the address where they meet.
        """
        chunk, runs_behind = self.limits.chunk_tokens, not self.tier.is_cpu
        lives_on = self.talkers.get(Role.DECODE) or self.talkers.get(Role.MIXED)
        prefiller = self.talkers.get(Role.PREFILL)
        found: dict[Sweep, Measure] = {}
        for talker in (prefiller or lives_on,):
            if talker is not None:
                found[Sweep.PREFILL] = PrefillMeasure(talker, chunk, power, runs_behind=runs_behind)
        if lives_on is not None:
            found[Sweep.APPEND] = PrefillMeasure(lives_on, chunk, power, runs_behind=runs_behind)
            found[Sweep.DECODE] = DecodeMeasure(lives_on, power)
            found[Sweep.REQUEST] = RequestMeasure(lives_on)
        decoder = self.talkers.get(Role.DECODE)
        if prefiller is not None and decoder is not None and prefiller.bootstrap is not None:
            if self.is_ours:
                found[Sweep.TRANSFER] = TransferMeasure(prefiller, decoder)
            found[Sweep.HANDOFF] = HandoffMeasure(prefiller, decoder)
        return found

    async def first_handoff_s(self) -> float | None:
        """What the pair's first handoff takes beyond a later one. None: there is no pair, or it has
        been used before."""
        prefiller, decoder = self.talkers.get(Role.PREFILL), self.talkers.get(Role.DECODE)
        if prefiller is None or decoder is None or prefiller.bootstrap is None or not self.is_ours:
            return None
        return await first_handoff_s(prefiller, decoder)

    def close(self) -> None:
        """Close the connections."""
        for talker in self.talkers.values():
            talker.close()


def measured_part(tier_map: TierMap, tier: str | None, is_here: Any) -> TierMap:
    """The tier map with one worker of each tier that is measured, all of one kind of GPU.

    With `tier`, that one alone. Raises `ConfigError` if there is none, or kinds differ.
    """
    tiers = [each for each in tier_map.tiers if tier is None or each.name == tier]
    if not tiers:
        known = ", ".join(each.name for each in tier_map.tiers)
        raise ConfigError(f"{tier_map.source} has no tier {tier!r}; it has {known}")
    first: dict[Role, WorkerPlan] = {}
    for worker in tier_map.workers:
        if is_here(worker.host) and any(worker.tier == each.name for each in tiers):
            first.setdefault(worker.role, worker)
    if not first:
        raise ConfigError(
            f"{tier_map.source}: none of its workers runs on this machine; attach to one that"
            " does with --attach URL, or say which host this is with --host"
        )
    used = tuple(each for each in tier_map.tiers if each.name in {w.tier for w in first.values()})
    kinds = {(each.gpu.lower(), each.tp) for each in used}
    if len(kinds) > 1:
        names = ", ".join(f"{each.name} ({each.gpu}, tp {each.tp})" for each in used)
        raise ConfigError(f"a profile is of one kind of GPU, and these differ: {names}; use --tier")
    stamped = tuple(
        replace(each, count=1, sglang_flags={**each.sglang_flags, **_STAMPS}) for each in used
    )
    return replace(tier_map, tiers=stamped, workers=tuple(first.values()), power_budget_w=None)


def at_cap(part: TierMap, stand: Stand, cap_w: float | None) -> tuple[TierMap, Stand]:
    """The same under another power cap; None leaves the tier map's.

    Raises `ConfigError` for a tier that has no GPU to cap.
    """
    if cap_w is None:
        return part, stand
    if stand.tier.is_cpu:
        raise ConfigError(f"--power-cap: tier {stand.tier.name} runs on the CPU, which has no cap")
    tiers = tuple(replace(tier, power_cap_w=cap_w) for tier in part.tiers)
    return replace(part, tiers=tiers), replace(stand, tier=replace(stand.tier, power_cap_w=cap_w))


def named_for_cap(out: Path, cap_w: float | None) -> Path:
    """The profile's path, with the cap where one was asked for."""
    return out if cap_w is None else out.with_name(f"{out.name}-{cap_w:g}w")


def talkers_of(tier_map: TierMap, rng: random.Random) -> dict[Role, Talker]:
    """A talker for each worker of `measured_part`'s answer."""
    ids = num_token_ids(Path(tier_map.model.path))
    return {
        worker.role: Talker(
            f"http://{worker.host}:{worker.port}",
            worker.role,
            num_token_ids=ids,
            rng=rng,
            bootstrap=None
            if worker.bootstrap_port is None
            else (worker.host, worker.bootstrap_port),
        )
        for worker in tier_map.workers
    }


async def attached_talkers(
    urls: Sequence[str], tier_map: TierMap, rng: random.Random
) -> dict[Role, Talker]:
    """A talker for each running worker, in the role that it tells. Raises `WorkerError`."""
    ids = num_token_ids(Path(tier_map.model.path))
    found: dict[Role, Talker] = {}
    for url in urls:
        asking = Talker(url, Role.MIXED, num_token_ids=ids, rng=rng)
        info = await asking.info()
        asking.close()
        mode = str(info.get("disaggregation_mode") or "null")
        role = _ROLES.get(mode)
        if role is None or role in found:
            raise NotCapable(f"{url} runs in mode {mode!r}; attach to one worker of a role at most")
        bootstrap = _bootstrap(url, info) if role is Role.PREFILL else None
        found[role] = Talker(url, role, num_token_ids=ids, rng=rng, bootstrap=bootstrap)
    return found


def _bootstrap(url: str, info: dict[str, Any]) -> tuple[str, int] | None:
    """Where a prefiller meets decoders, as far as it tells."""
    host, port = urlsplit(url).hostname, info.get("disaggregation_bootstrap_port")
    return (host, port) if host and isinstance(port, int) else None


async def look_at(
    tier_map: TierMap,
    talkers: dict[Role, Talker],
    *,
    is_ours: bool,
    max_batch: int | None,
) -> Stand:
    """Ask the workers what they are, and what fits them all."""
    infos = {role: await talker.info() for role, talker in talkers.items()}
    facts = [await talker.facts() for talker in talkers.values()]
    tier = next((t for t in tier_map.tiers if t.role in talkers), tier_map.tiers[0])
    most = max_batch or (32 if tier.is_cpu else 128)
    told = list(infos.values())
    limits = Limits(
        kv_capacity_tokens=min(fact.kv_capacity_tokens for fact in facts),
        context_tokens=min(
            info.get("context_length") or context_tokens(Path(tier_map.model.path)) for info in told
        ),
        chunk_tokens=min(_chunk_tokens(info) for info in told),
        max_batch=min([most, *(info.get("max_running_requests") or most for info in told)]),
    )
    return Stand(
        tier=tier,
        talkers=talkers,
        infos=infos,
        limits=limits,
        is_ours=is_ours,
        kv_bytes_per_token=facts[0].kv_bytes_per_token,
    )


def _chunk_tokens(info: dict[str, Any]) -> int:
    told = info.get("chunked_prefill_size") or 0
    return int(told) if told > 0 else _CHUNK_TOKENS
