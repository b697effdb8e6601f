"""The router's metrics as Prometheus reads them: plain numbers until they are scraped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from conserve_sglang import __version__
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import WorkerReport
from conserve_sglang.dispatch import WorkerLoad
from conserve_sglang.policy.api import PhaseOneCause, PlacementReason
from conserve_sglang.telemetry.metrics import E, RouterMetrics, TenantCount, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_TENANTS = 50
OTHER_TENANTS = "other"


@dataclass(frozen=True, slots=True)
class BreakerReading:
    """A worker's circuit breaker: 0 closed, 1 half open, 2 open; and how often it opened."""

    level: int
    num_openings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is true at the moment of a scrape; `reports` has the workers that told their load."""

    queue_depths: Mapping[str, int]
    num_open_turns: int
    num_conversations: int
    workers: Sequence[WorkerLoad]
    reports: Mapping[WorkerId, WorkerReport] = field(default_factory=dict)
    num_state_failures: int = 0
    is_state_degraded: bool = False
    is_ready: bool = False
    certificate_expires_at_s: float | None = None  # of the control port's listener
    breakers: Mapping[WorkerId, BreakerReading] = field(default_factory=dict)


# Reasons for which a conversation that had its KV somewhere got a new phase 1.
_REENTRIES = tuple(PlacementReason(cause.value) for cause in PhaseOneCause)
_TIMINGS = {
    "ttft": "Turn arrival to first answer byte",
    "tbt": "Mean gap between the output tokens of a streamed turn",
    "ttfet": "Arrival of turn 1 to the first byte of the first answer that calls no tool",
    "e2e": "Turn arrival to last answer byte",
}
_TENANTS = {
    "turns": "Turns over, by tenant",
    "rejections": "Turns not served, by tenant",
    "prompt_tokens": "Prompt tokens of answered turns, by tenant",
    "cached_tokens": "Prompt tokens found in KV, by tenant",
    "output_tokens": "Tokens answered, by tenant",
}


class RouterCollector(Collector):
    """Reads the metrics and the gauges whenever Prometheus asks."""

    def __init__(
        self, read: Callable[[], RouterMetrics], observe: Callable[[], Gauges], policy: str = ""
    ) -> None:
        self._read = read
        self._observe = observe
        self._policy = policy
        self._tenants: set[str] = set()  # those with series of their own, for good

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        metrics = self._read()
        yield InfoMetricFamily(
            "conserve_router_build",
            "Version and policy of this router",
            value={"version": __version__, "policy": self._policy},
        )
        yield _counter("turns", "Turns by how they ended", "outcome", metrics.turns)
        yield _counter("placements", "Turns sent, by reason", "reason", metrics.placements)
        yield _counter("rejections", "Turns not served, by reason", "reason", metrics.rejections)
        yield _counter("failed_attempts", "Attempts that failed", "cause", metrics.failures)
        reentries = {reason: metrics.placements[reason] for reason in _REENTRIES}
        yield _counter("phase_one_reentries", "New phase 1 by cause", "cause", reentries)
        for name, text, value in (
            ("retries", "Turns sent again after an attempt failed", metrics.num_retries),
            ("kv_transfers", "Turns that moved KV to a decoder", metrics.num_kv_transfers),
            ("kv_transferred_tokens", "KV tokens moved, by ledger", metrics.kv_transferred_tokens),
            ("kv_transferred_bytes", "The same where size is known", metrics.kv_transferred_bytes),
            ("kv_misses", "Tail turns whose context was gone", metrics.num_kv_misses),
            (
                "interruptions",
                "Streams whose decoder was lost in the middle, to go on elsewhere",
                metrics.num_interruptions,
            ),
            (
                "continuations",
                "Streams that another decoder went on with",
                metrics.num_continuations,
            ),
            ("unauthorized", "Requests without a key that is valid", metrics.num_unauthorized),
            ("prompt_tokens", "Prompt tokens of answered turns", metrics.prompt_tokens),
            ("cached_tokens", "Prompt tokens found in KV", metrics.cached_tokens),
            ("output_tokens", "Tokens answered", metrics.output_tokens),
        ):
            yield CounterMetricFamily(f"conserve_router_{name}", text, value=value)
        yield from _histograms(metrics.timings)
        yield from self._by_tenant(metrics.tenants)
        gauges = self._observe()
        yield _certificates(metrics.certificate_expires_at_s, gauges.certificate_expires_at_s)
        yield from _gauges(gauges)

    def _by_tenant(self, tenants: Mapping[str, TenantCount]) -> Iterator[Metric]:
        """The first `MAX_TENANTS` seen keep series of their own, all others share one."""
        for tenant_id in sorted(tenants):
            if len(self._tenants) < MAX_TENANTS:
                self._tenants.add(tenant_id)
        for name, text in _TENANTS.items():
            values: dict[str, int] = {}
            for tenant_id, count in tenants.items():
                shown = tenant_id if tenant_id in self._tenants else OTHER_TENANTS
                values[shown] = values.get(shown, 0) + getattr(count, name)
            family = CounterMetricFamily(f"conserve_tenant_{name}", text, labels=("tenant",))
            for shown, value in values.items():
                family.add_metric((shown,), value)
            yield family


def _certificates(main: float | None, control: float | None) -> Metric:
    """When they end, by listener; none without TLS."""
    family = GaugeMetricFamily(
        "conserve_router_tls_certificate_expiry_timestamp_seconds",
        "When the listener's certificate ends, in seconds since 1970",
        labels=("listener",),
    )
    for listener, at_s in (("main", main), ("control", control)):
        if at_s is not None:
            family.add_metric((listener,), at_s)
    return family


def _gauges(gauges: Gauges) -> Iterator[Metric]:
    queued = GaugeMetricFamily(
        "conserve_router_queued_turns", "Turns not sent yet, by queue", labels=("queue",)
    )
    for queue, depth in gauges.queue_depths.items():
        queued.add_metric((queue,), depth)
    yield queued
    for name, text, value in (
        ("open_turns", "Turns not over yet", gauges.num_open_turns),
        ("conversations", "Live conversations", gauges.num_conversations),
        ("ready", "1 while a new conversation lacks no worker", float(gauges.is_ready)),
        ("state_degraded", "1 while state is not kept", float(gauges.is_state_degraded)),
    ):
        yield GaugeMetricFamily(f"conserve_router_{name}", text, value=value)
    text = "Failed attempts to write or read state"
    failures = gauges.num_state_failures
    yield CounterMetricFamily("conserve_router_state_failures", text, value=failures)
    for name, text, read in _WORKER_GAUGES:
        yield _worker_family(name, text, ((load, read(load)) for load in gauges.workers))
    breakers = [
        (load, gauges.breakers[load.worker_id])
        for load in gauges.workers
        if load.worker_id in gauges.breakers
    ]
    text = "Circuit breaker: 0 closed, 1 half open, 2 open"
    yield _worker_family("breaker", text, ((load, seen.level) for load, seen in breakers))
    openings = CounterMetricFamily(
        "conserve_worker_breaker_openings", "How often it opened", labels=_OF_WORKER
    )
    for load, seen in breakers:
        openings.add_metric(_labels_of(load), seen.num_openings)
    yield openings
    for name, text, tell in _REPORTED_GAUGES:
        reported = (
            (load, tell(load, gauges.reports[load.worker_id]))
            for load in gauges.workers
            if load.worker_id in gauges.reports
        )
        yield _worker_family(name, text, reported)


def _worker_family(
    name: str, text: str, values: Iterable[tuple[WorkerLoad, float | None]]
) -> GaugeMetricFamily:
    """One value a worker; none for a worker of which it is not known."""
    family = GaugeMetricFamily(f"conserve_worker_{name}", text, labels=_OF_WORKER)
    for load, value in values:
        if value is not None:
            family.add_metric(_labels_of(load), value)
    return family


_OF_WORKER = ("worker", "role", "tier")


def _labels_of(load: WorkerLoad) -> tuple[str, str, str]:
    return load.worker_id, load.role.value, load.tier


_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerLoad], float]], ...] = (
    ("up", "1 while the worker is there", lambda load: float(load.is_up)),
    ("takes_turns", "1 while it is given turns", lambda load: float(load.takes_turns)),
    ("kv_capacity_tokens", "Size of the KV pool", lambda load: load.capacity_tokens),
    ("kv_resident_tokens", "KV of conversations, by ledger", lambda load: load.resident_tokens),
    ("kv_foreign_tokens", "KV of other replicas' turns", lambda load: load.foreign_tokens),
    ("kv_reserved_tokens", "KV set aside for open turns", lambda load: load.reserved_tokens),
    ("backlog_tokens", "Prompt tokens not prefilled yet", lambda load: load.backlog_tokens),
    ("conversations", "Conversations pinned here", lambda load: load.num_conversations),
)


def _difference(load: WorkerLoad, report: WorkerReport) -> float | None:
    if report.held_tokens is None:
        return None
    return report.held_tokens - load.resident_tokens


_REPORTED_GAUGES: tuple[
    tuple[str, str, Callable[[WorkerLoad, WorkerReport], float | None]], ...
] = (
    ("kv_held_tokens", "KV held, as the worker reports", lambda load, told: told.held_tokens),
    ("kv_difference_tokens", "KV reported less KV resident by ledger", _difference),
    ("kv_used_tokens", "KV of running turns, as reported", lambda load, told: told.used_tokens),
    ("running_turns", "Turns running, as reported", lambda load, told: told.num_running),
    ("waiting_turns", "Turns queued in the worker", lambda load, told: told.num_waiting),
)


def _counter(name: str, text: str, label: str, values: Mapping[E, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"conserve_router_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key.value),), value)
    return family


def _histograms(timings: Mapping[tuple[str, str], Timings]) -> Iterator[Metric]:
    for name, text in _TIMINGS.items():
        full_name = f"conserve_router_{name}_seconds"
        family = HistogramMetricFamily(full_name, text, labels=("tier", "role"))
        for labels, each in timings.items():
            histogram = getattr(each, name)
            family.add_metric(labels, histogram.buckets(), histogram.sum_s)
        yield family


class Exporter:
    """Renders the metrics as text."""

    def __init__(
        self,
        read: Callable[[], RouterMetrics],
        observe: Callable[[], Gauges],
        policy: str = "",
        others: Sequence[Collector] = (),
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RouterCollector(read, observe, policy))
        for collector in others:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The exposition of this moment."""
        return generate_latest(self._registry)
