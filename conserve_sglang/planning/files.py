"""Inventory and workload files, read as strictly as a tier map: an unknown field is an error."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from conserve_sglang.core.errors import PlanError
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.tier import FlagValue
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.inventory import ALL_ROLES, GpuTier, Host, Inventory
from conserve_sglang.planning.inventory_check import problems
from conserve_sglang.planning.load import Load
from conserve_sglang.profiles.hardware import least_cap_w
from conserve_sglang.tiermap.strict import Parts, explain, read_text, read_yaml
from conserve_sglang.traces import Trace, read_trace
from conserve_sglang.traces.standing import standing_for
from conserve_sglang.workload import (
    ConversationPlan,
    TurnPlan,
    claude_code_conversations,
    cut_to_window,
    first_turns,
    mini_swe_conversations,
    scaled_to_window,
)

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=32)]
T = TypeVar("T")
NUM_GENERATED = 2000
MOST_NUMBERS_TOLD = 5


_GENERATORS: Mapping[str, Callable[[int, random.Random], Iterator[ConversationPlan]]] = {
    "mini-swe": mini_swe_conversations,
    "claude-code": claude_code_conversations,
}


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class HostFile(_Strict, frozen=True, kw_only=True):
    """A machine: its first `gpus` GPUs, or those of `gpu_ids`."""

    name: Annotated[str, Meta(min_length=1)]
    gpus: Count | None = None
    gpu_ids: tuple[Annotated[int, Meta(ge=0)], ...] | None = None


class GpuTierFile(_Strict, frozen=True, kw_only=True):
    """Equal GPUs and what may be done with them. `least_power_cap_w`: the lowest cap they accept,
    where the table of known GPUs does not tell or is wrong."""

    name: Name
    gpu: Annotated[str, Meta(min_length=1)]
    hosts: Annotated[tuple[HostFile, ...], Meta(min_length=1)]
    roles: tuple[Literal["prefill", "decode", "mixed"], ...] | None = None
    tp: tuple[Count, ...] | None = None
    power_caps_w: tuple[Positive | None, ...] | None = None
    least_power_cap_w: Positive | None = None
    kv_capacity_tokens: Count | None = None
    sglang_flags: dict[str, FlagValue] = {}


class ModelFile(_Strict, frozen=True, kw_only=True):
    """The model to serve, as in a tier map."""

    path: Annotated[str, Meta(min_length=1)]
    served_name: str | None = None


class InventoryFile(_Strict, frozen=True, kw_only=True):
    """What there is. `router` goes into the tier map as it is."""

    schema_version: Literal[1]
    model: ModelFile
    tiers: Annotated[tuple[GpuTierFile, ...], Meta(min_length=1)]
    transfer_backend: Literal["mooncake", "mooncake_tcp", "nixl"] = "mooncake"
    router: dict[str, object] = {}


class ShapeFile(_Strict, frozen=True, kw_only=True):
    """Conversations that are all alike: lengths in tokens."""

    turns: Count
    first_input_tokens: Count
    append_tokens: Count
    output_tokens: Count
    gap_s: Annotated[float, Meta(ge=0)] = 0.0


class WorkloadFile(_Strict, frozen=True, kw_only=True):
    """Which conversations: one of `trace` (a file, relative to this one), `generator` and `shape`;
    and how many of them come a second, if not at the trace's own times. With `fitting` all lengths
    are scaled so that this share of the conversations fits `window_tokens`; else they are cut.
    """

    schema_version: Literal[1]
    trace: str | None = None
    format: str | None = None
    generator: Literal["mini-swe", "claude-code"] | None = None
    shape: ShapeFile | None = None
    conversations_per_s: Positive | None = None
    max_turns: Count | None = None
    window_tokens: Count | None = None
    fitting: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: int = 0


_INVENTORY: Parts = {
    "": InventoryFile, "model": ModelFile, "tiers[]": GpuTierFile, "tiers[].hosts[]": HostFile
}  # fmt: skip
_WORKLOAD: Parts = {"": WorkloadFile, "shape": ShapeFile}


def load_inventory(path: Path) -> Inventory:
    """Read an inventory file. Raises PlanError with the field that is wrong."""
    decoded = _decode(path, InventoryFile, _INVENTORY)
    inventory = Inventory(
        model=decoded.model.path,
        served_name=decoded.model.served_name,
        tiers=tuple(_tier(path, tier) for tier in decoded.tiers),
        transfer_backend=decoded.transfer_backend,
        router=decoded.router,
    )
    if found := [f"{path}: {problem}" for problem in problems(inventory)]:
        raise PlanError("\n".join(found))
    return inventory


def _tier(path: Path, tier: GpuTierFile) -> GpuTier:
    return GpuTier(
        name=tier.name,
        gpu=tier.gpu,
        hosts=tuple(_host(path, tier.name, host) for host in tier.hosts),
        roles=ALL_ROLES if tier.roles is None else tuple(Role(role) for role in tier.roles),
        tps=tier.tp,
        power_caps_w=tier.power_caps_w,
        least_cap_w=tier.least_power_cap_w or least_cap_w(tier.gpu),
        kv_capacity_tokens=tier.kv_capacity_tokens,
        sglang_flags=tier.sglang_flags,
    )


def _host(path: Path, tier: str, host: HostFile) -> Host:
    if (host.gpus is None) == (host.gpu_ids is None):
        raise PlanError(f"{path}: tier {tier}, host {host.name}: give either gpus or gpu_ids")
    ids = tuple(range(host.gpus)) if host.gpus is not None else host.gpu_ids or ()
    return Host(name=host.name, gpu_ids=ids)


def load_workload(path: Path, rate_per_s: float | None = None) -> Load:
    """Read a workload file, or a trace itself; `rate_per_s` takes the place of its own load.
    Raises PlanError, or TraceError for a trace that cannot be read."""
    if rate_per_s is not None and not (rate_per_s > 0 and math.isfinite(rate_per_s)):
        raise PlanError(f"--rate {rate_per_s:g}: give how many conversations come a second")
    if path.suffix not in (".yaml", ".yml"):
        return _from_trace(path, WorkloadFile(schema_version=1, trace=path.name), rate_per_s)
    decoded = _decode(path, WorkloadFile, _WORKLOAD)
    given = [decoded.trace, decoded.generator, decoded.shape]
    if sum(one is not None for one in given) != 1:
        raise PlanError(f"{path}: give one of trace, generator and shape")
    if decoded.trace is not None:
        return _from_trace(path, decoded, rate_per_s)
    rate = rate_per_s or decoded.conversations_per_s
    if rate is None:
        raise PlanError(f"{path}: conversations_per_s: missing; how many come a second?")
    if decoded.shape is not None:
        plans = [_alike(decoded.shape)]
        what = f"{decoded.shape.turns} turns, all alike"
    else:
        assert decoded.generator is not None
        generate = _GENERATORS[decoded.generator]
        plans = list(generate(NUM_GENERATED, random.Random(decoded.seed)))
        what = f"generator {decoded.generator}"
    generated = decoded.generator
    like = None if generated is None else standing_for(_GENERATORS[generated])
    cut, told = _cut(path, plans, decoded, like)
    return Load(
        conversations=cut,
        rate_per_s=rate,
        has_own_times=False,
        seed=decoded.seed,
        source=f"{path.name}: {what}{told}",
    )


def _from_trace(path: Path, workload: WorkloadFile, rate_per_s: float | None) -> Load:
    assert workload.trace is not None
    file = path.parent / workload.trace
    trace = read_trace(file, workload.format)
    plans = sorted(trace.conversations, key=lambda plan: plan.arrived_at_s)
    if not plans:
        raise PlanError(f"{file}: no line of it can be used")
    span_s = plans[-1].arrived_at_s - plans[0].arrived_at_s
    own = (len(plans) - 1) / span_s if span_s > 0 else None
    rate = rate_per_s or workload.conversations_per_s or own
    if rate is None:
        raise PlanError(f"{file}: all its conversations arrive at once; say how fast with --rate")
    cut, told = _cut(path, plans, workload)
    noun = "conversation" if len(plans) == 1 else "conversations"
    return Load(
        conversations=cut,
        rate_per_s=rate,
        has_own_times=own is not None,
        seed=workload.seed,
        source=f"{file.name}: {len(plans)} {noun}{_not_used(trace)}{told}",
    )


def _not_used(trace: Trace) -> str:
    """What of a trace is not played: the numbers of its first bad lines, and files not read."""
    lines = trace.bad_lines
    files = f", files in no known format: {len(trace.not_read)}" if trace.not_read else ""
    if not lines:
        return files
    numbers = ", ".join(str(line.number) for line in lines[:MOST_NUMBERS_TOLD])
    more = ", ..." if len(lines) > MOST_NUMBERS_TOLD else ""
    return f", {len(lines)} lines not used (line {numbers}{more}){files}"


def _cut(
    path: Path,
    plans: list[ConversationPlan],
    workload: WorkloadFile,
    like: Sequence[ConversationPlan] | None = None,
) -> tuple[tuple[ConversationPlan, ...], str]:
    """The conversations that are played, and in words what was done to get them."""
    kept: Iterator[ConversationPlan] = iter(plans)
    told = ""
    if workload.fitting is not None:
        if workload.window_tokens is None:
            raise PlanError(f"{path}: fitting: it needs window_tokens, which lengths are scaled to")
        scaling = scaled_to_window(
            plans, workload.window_tokens, fitting=workload.fitting, like=like
        )
        kept, told = iter(scaling.conversations), f"; {scaling.statement()}"
    elif workload.window_tokens is not None:
        kept = cut_to_window(kept, workload.window_tokens)
    if workload.max_turns is not None:
        kept = first_turns(kept, workload.max_turns)
    cut = tuple(kept)
    if not cut:
        raise PlanError(f"{path}: no conversation fits a window of {workload.window_tokens} tokens")
    window, num_left_out = workload.window_tokens, len(plans) - len(cut)
    if window is not None and num_left_out and not told:
        told = f"; {num_left_out} of {len(plans)} that do not fit {window:,} tokens left out"
    return cut, told


def _alike(shape: ShapeFile) -> ConversationPlan:
    turns, context = [], 0
    for number in range(shape.turns):
        new = shape.append_tokens if number else shape.first_input_tokens
        turns.append(
            TurnPlan(
                input_tokens=context + new,
                output_tokens=shape.output_tokens,
                shared_tokens=context,
                gap_s=shape.gap_s if number else 0.0,
            )
        )
        context += new + shape.output_tokens
    return ConversationPlan(conversation_id=ConversationId("alike"), turns=tuple(turns))


def _decode(path: Path, kind: type[T], parts: Parts) -> T:
    raw = read_yaml(read_text(path), str(path))
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}: {explain(str(error), parts)}") from error
