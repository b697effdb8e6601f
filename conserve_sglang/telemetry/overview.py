"""The state of a running router and its workers, as two scrapes of its metrics tell it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from conserve_sglang.telemetry.scrape import Scrape, quantile, rate

BREAKERS = ("closed", "half_open", "open")  # by conserve_worker_breaker
QUANTILES = (0.5, 0.95)
LATENCIES = ("ttfet", "ttft", "tbt", "e2e")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterRow:
    """The router as a whole; rates and latencies over the time between, None where not known."""

    version: str
    policy: str
    up_s: float | None
    num_conversations: int
    num_open_turns: int
    queued_turns: Mapping[str, int]
    turns_per_s: float | None
    prompt_tokens_per_s: float | None
    cached_tokens_per_s: float | None
    output_tokens_per_s: float | None
    kv_transfers_per_s: float | None
    retries_per_s: float | None
    rejections_per_s: float | None
    latency_s: Mapping[str, tuple[float | None, float | None]]  # p50 and p95
    watts: float | None = None
    joules_per_output_token: float | None = None
    energy_origin: str | None = None  # of both: measured, or modelled if any of it is


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker; None where it does not tell. `watts` needs an agent, `power_origin` says what
    they are: measured or modelled."""

    name: str
    role: str
    tier: str
    is_up: bool
    takes_turns: bool
    breaker: str | None
    capacity_tokens: int
    resident_tokens: int
    reserved_tokens: int
    held_tokens: int | None
    backlog_tokens: int
    num_conversations: int
    num_running: int | None
    num_waiting: int | None
    watts: float | None
    power_origin: str | None = None

    @property
    def state(self) -> str:
        """In a word."""
        if not self.is_up:
            return "not up"
        return "up" if self.takes_turns else "no turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What `conserve-sglang top` shows."""

    router: RouterRow
    workers: tuple[WorkerRow, ...]


def overview(before: Scrape | None, after: Scrape, wall_s: float) -> Overview:
    """Of a scrape, with rates since an earlier one; `wall_s` is the time of day of the later."""
    names = [labels["worker"] for labels, _ in after.each("conserve_worker_up")]
    rows = tuple(_worker(after, name) for name in names)
    return Overview(router=_router(before, after, wall_s), workers=rows)


def _router(before: Scrape | None, after: Scrape, wall_s: float) -> RouterRow:
    build = next((labels for labels, _ in after.each("conserve_router_build_info")), {})
    started_s = after.total("process_start_time_seconds")

    def per_s(name: str) -> float | None:
        return None if before is None else rate(before, after, f"conserve_router_{name}_total")

    return RouterRow(
        version=build.get("version", "?"),
        policy=build.get("policy", "?"),
        up_s=None if started_s is None else max(0.0, wall_s - started_s),
        num_conversations=int(after.total("conserve_router_conversations") or 0),
        num_open_turns=int(after.total("conserve_router_open_turns") or 0),
        queued_turns={
            labels["queue"]: int(value)
            for labels, value in after.each("conserve_router_queued_turns")
        },
        turns_per_s=per_s("turns"),
        prompt_tokens_per_s=per_s("prompt_tokens"),
        cached_tokens_per_s=per_s("cached_tokens"),
        output_tokens_per_s=per_s("output_tokens"),
        kv_transfers_per_s=per_s("kv_transfers"),
        retries_per_s=per_s("retries"),
        rejections_per_s=per_s("rejections"),
        latency_s={name: _latency(before, after, name) for name in LATENCIES},
        **_energy(before, after, per_s("output_tokens")),
    )


class _Energy(TypedDict):
    watts: float | None
    joules_per_output_token: float | None
    energy_origin: str | None


def _energy(before: Scrape | None, after: Scrape, output_per_s: float | None) -> _Energy:
    """Power of all workers, idle too, over the time between, and what an output token took."""
    name = "conserve_router_energy_joules_total"
    watts = None if before is None else rate(before, after, name)
    return _Energy(
        watts=watts,
        joules_per_output_token=watts / output_per_s if watts and output_per_s else None,
        energy_origin=_origin(after, name),
    )


def _origin(scrape: Scrape, name: str, **wanted: str) -> str | None:
    """One modelled part makes a sum modelled; None where there is nothing."""
    origins = {labels["origin"] for labels, _ in scrape.each(name, **wanted)}
    return "modelled" if "modelled" in origins else "measured" if origins else None


def _latency(before: Scrape | None, after: Scrape, name: str) -> tuple[float | None, float | None]:
    p50, p95 = (
        quantile(before, after, f"conserve_router_{name}_seconds", share) for share in QUANTILES
    )
    return p50, p95


def _worker(scrape: Scrape, name: str) -> WorkerRow:
    def told(metric: str) -> float | None:
        return scrape.total(f"conserve_worker_{metric}", worker=name)

    def count(metric: str) -> int | None:
        value = told(metric)
        return None if value is None else int(value)

    labels = next(labels for labels, _ in scrape.each("conserve_worker_up", worker=name))
    level = count("breaker")
    return WorkerRow(
        name=name,
        role=labels["role"],
        tier=labels["tier"],
        is_up=bool(told("up")),
        takes_turns=bool(told("takes_turns")),
        breaker=None if level is None else BREAKERS[level],
        capacity_tokens=count("kv_capacity_tokens") or 0,
        resident_tokens=count("kv_resident_tokens") or 0,
        reserved_tokens=count("kv_reserved_tokens") or 0,
        held_tokens=count("kv_held_tokens"),
        backlog_tokens=count("backlog_tokens") or 0,
        num_conversations=count("conversations") or 0,
        num_running=count("running_turns"),
        num_waiting=count("waiting_turns"),
        watts=told("power_watts"),
        power_origin=_origin(scrape, "conserve_worker_power_watts", worker=name),
    )
