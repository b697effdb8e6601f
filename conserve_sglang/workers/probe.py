"""What a worker says about itself: once in full when it is met, then only that it is there."""

from dataclasses import dataclass

import msgspec

from conserve_sglang.core.errors import NotCapable, Unreachable
from conserve_sglang.core.tier import Model
from conserve_sglang.core.worker import Role, WorkerReport
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.unreadable import UNREADABLE

MODES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.MIXED: "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A worker as it reported itself. `serves_local_turns`: our plugin is in force in it.

    `incarnation` is another one after each start; None from a worker that does not tell.
    `can_continue`: it takes part in going on with answers that others began.
    `kv_bytes_per_token` is None where the worker's figures do not tell.
    """

    mode: str
    kv_capacity_tokens: int
    serves_local_turns: bool
    served_name: str
    version: str
    incarnation: str | None = None
    can_continue: bool = False
    kv_bytes_per_token: float | None = None


class _Conserve(msgspec.Struct):
    local_prefill: bool = False
    continues: bool = False
    incarnation: str | None = None
    resident_tokens: int | None = None


class _Memory(msgspec.Struct):
    token_capacity: int | None = None
    kvcache: float | None = None  # in GB, of one rank


class _State(msgspec.Struct):
    conserve: _Conserve | None = None
    memory_usage: _Memory | None = None


class _ServerInfo(msgspec.Struct):
    disaggregation_mode: str | None = None
    max_total_num_tokens: int | None = None
    max_total_tokens: int | None = None
    served_model_name: str | None = None
    tp_size: int | None = None
    version: str = ""
    internal_states: list[_State] = []


class _Load(msgspec.Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_used_tokens: int = 0


class _Loads(msgspec.Struct):
    loads: list[_Load] = []


_server_info = msgspec.json.Decoder(_ServerInfo)
_loads = msgspec.json.Decoder(_Loads)
_LEAST_TOLD_GB = 0.1  # told to 0.001: below this the figure is off by more than half a percent


async def read_facts(pool: ConnectionPool, timeout_s: float = 30.0) -> WorkerFacts:
    """Ask a worker what it is."""
    info = await _ask(pool, timeout_s)
    state = info.internal_states[0] if info.internal_states else _State()
    capacity = info.max_total_num_tokens or info.max_total_tokens
    if not capacity and state.memory_usage is not None:
        capacity = state.memory_usage.token_capacity
    if not capacity:
        raise NotCapable("GET /server_info tells no KV capacity (max_total_num_tokens)")
    return WorkerFacts(
        mode=info.disaggregation_mode or "null",
        kv_capacity_tokens=capacity,
        serves_local_turns=state.conserve is not None and state.conserve.local_prefill,
        served_name=info.served_model_name or "",
        version=info.version,
        incarnation=None if state.conserve is None else state.conserve.incarnation,
        can_continue=state.conserve is not None and state.conserve.continues,
        kv_bytes_per_token=_kv_bytes_per_token(info, state),
    )


async def read_report(pool: ConnectionPool, timeout_s: float) -> WorkerReport:
    """Ask a worker how loaded it is. Raises `WorkerError` if it does not answer."""
    info = await _ask(pool, timeout_s)
    states = [state.conserve for state in info.internal_states if state.conserve is not None]
    held = [told.resident_tokens for told in states if told.resident_tokens is not None]
    status, body = await fetch(pool, "GET", "/v1/loads?include=core", timeout_s=timeout_s)
    try:
        loads = _loads.decode(body).loads if status == 200 else []
    except UNREADABLE:
        loads = []
    return WorkerReport(
        held_tokens=sum(held) if held else None,
        used_tokens=sum(load.num_used_tokens for load in loads) if loads else None,
        num_running=sum(load.num_running_reqs for load in loads) if loads else None,
        num_waiting=sum(load.num_waiting_reqs for load in loads) if loads else None,
    )


async def _ask(pool: ConnectionPool, timeout_s: float) -> _ServerInfo:
    status, body = await fetch(pool, "GET", "/server_info", timeout_s=timeout_s)
    if status != 200:
        raise Unreachable(f"GET /server_info answered {status}")
    try:
        return _server_info.decode(body)
    except UNREADABLE as error:
        raise NotCapable(f"GET /server_info is not SGLang's: {error}") from error


def _kv_bytes_per_token(info: _ServerInfo, state: _State) -> float | None:
    """By SGLang's own account of its KV pool, unless its rounding weighs too much."""
    memory = state.memory_usage
    if memory is None or not memory.kvcache or not memory.token_capacity:
        return None
    if memory.kvcache < _LEAST_TOLD_GB:
        return None
    return memory.kvcache * 2**30 / memory.token_capacity * (info.tp_size or 1)


def check_role(facts: WorkerFacts, role: Role, *, needs_plugin: bool) -> None:
    """Raise `NotCapable` if a worker cannot serve the role the tier map gives it."""
    if facts.mode != MODES[role]:
        raise NotCapable(
            f"it runs in disaggregation mode {facts.mode!r}, but the tier map gives it the role"
            f" {role.value!r}. Start it with --disaggregation-mode {MODES[role]}."
        )
    if role is Role.DECODE and needs_plugin and not facts.serves_local_turns:
        raise NotCapable(
            "it is a decoder without the conserve-sglang plugin and cannot serve tail turns."
            " Install conserve-sglang beside SGLang there, start it with CONSERVE_ENABLED=1 and"
            " CONSERVE_LOCAL_PREFILL=1, and see `conserve-sglang doctor`."
        )


def check_model(facts: WorkerFacts, model: Model) -> None:
    """Raise `NotCapable` if a worker says that it serves another model than the tier map's."""
    if facts.served_name and facts.served_name not in (model.served_name, model.path):
        raise NotCapable(
            f"it serves the model {facts.served_name!r}, but the tier map says"
            f" {model.served_name!r}. Start it with --served-model-name {model.served_name}, or"
            " set model.served_name in the tier map."
        )


async def is_scheduler_well(pool: ConnectionPool, timeout_s: float) -> bool:
    """Whether something has come out of a worker's scheduler since it was asked.

    An idle server generates a token for it; a busy one waits for whatever comes next.
    """
    status, _ = await fetch(pool, "GET", "/health", timeout_s=timeout_s)
    return status < 500


async def is_ready(pool: ConnectionPool, timeout_s: float) -> bool:
    """Whether a worker answers and takes requests; cheap, runs no model step.

    `/health` would make an idle server generate a token and take a second for it. A server that
    does not know `/ready` (SGLang before 0.5.23) shows by its 404 that it is there.
    """
    status, _ = await fetch(pool, "GET", "/ready", timeout_s=timeout_s)
    return status in (200, 404)
