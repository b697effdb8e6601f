"""The router's metrics: plain numbers on the hot path, made Prometheus' when scraped."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from conserve_sglang.dispatch import FailureCause, WorkerLoad
from conserve_sglang.policy.api import PlacementReason, RejectReason

E = TypeVar("E", bound=Enum)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
)  # fmt: skip


class Outcome(Enum):
    """How a turn ended."""

    ANSWERED = "answered"
    CLIENT_LEFT = "client_left"
    BROKEN_OFF = "broken_off"
    REFUSED = "refused"
    REJECTED = "rejected"

    __hash__ = object.__hash__  # Enum's own is Python code, and this one is on the hot path


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class RouterMetrics:
    """What the router counts while it works."""

    def __init__(self) -> None:
        self.turns = dict.fromkeys(Outcome, 0)
        self.placements = dict.fromkeys(PlacementReason, 0)
        self.rejections = dict.fromkeys(RejectReason, 0)
        self.failures = dict.fromkeys(FailureCause, 0)
        self.num_kv_transfers = 0
        self.num_kv_misses = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.ttft = Histogram()
        self.e2e = Histogram()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is true at the moment of a scrape."""

    num_queued_turns: int
    num_open_turns: int
    num_conversations: int
    workers: Sequence[WorkerLoad]


# Reasons for which a conversation that had its KV somewhere got a new phase 1.
_REENTRIES = (
    PlacementReason.LARGE_APPEND,
    PlacementReason.PREFIX_MISSING,
    PlacementReason.DECODER_LOST,
    PlacementReason.RECLAIMED,
)


class RouterCollector(Collector):
    """Reads `RouterMetrics` and the gauges whenever Prometheus asks."""

    def __init__(self, metrics: RouterMetrics, observe: Callable[[], Gauges]) -> None:
        self._metrics = metrics
        self._observe = observe

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        metrics = self._metrics
        yield _counter("turns", "Turns by how they ended", "outcome", metrics.turns)
        yield _counter("placements", "Turns sent, by reason", "reason", metrics.placements)
        yield _counter("rejections", "Turns not served, by reason", "reason", metrics.rejections)
        yield _counter("failed_attempts", "Attempts that failed", "cause", metrics.failures)
        reentries = {reason: metrics.placements[reason] for reason in _REENTRIES}
        yield _counter("phase_one_reentries", "New phase 1 by cause", "cause", reentries)
        for name, text, value in (
            ("kv_transfers", "Turns that moved KV to a decoder", metrics.num_kv_transfers),
            ("kv_misses", "Tail turns whose context was gone", metrics.num_kv_misses),
            ("prompt_tokens", "Prompt tokens of answered turns", metrics.prompt_tokens),
            ("cached_tokens", "Prompt tokens found in KV", metrics.cached_tokens),
            ("output_tokens", "Tokens answered", metrics.output_tokens),
        ):
            yield CounterMetricFamily(f"conserve_router_{name}", text, value=value)
        yield _histogram("ttft", "Turn arrival to first answer byte", metrics.ttft)
        yield _histogram("e2e", "Turn arrival to last answer byte", metrics.e2e)
        yield from _gauges(self._observe())


def _gauges(gauges: Gauges) -> Iterator[Metric]:
    for name, text, value in (
        ("queued_turns", "Turns waiting for a place", gauges.num_queued_turns),
        ("open_turns", "Turns not over yet", gauges.num_open_turns),
        ("conversations", "Live conversations", gauges.num_conversations),
    ):
        yield GaugeMetricFamily(f"conserve_router_{name}", text, value=value)
    labels = ("worker", "role", "tier")
    for name, text, read in _WORKER_GAUGES:
        family = GaugeMetricFamily(f"conserve_worker_{name}", text, labels=labels)
        for load in gauges.workers:
            family.add_metric((load.worker_id, load.role.value, load.tier), read(load))
        yield family


_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerLoad], float]], ...] = (
    ("up", "1 while the worker may be given turns", lambda load: float(load.is_up)),
    ("kv_capacity_tokens", "Size of the KV pool", lambda load: load.capacity_tokens),
    ("kv_resident_tokens", "KV of conversations, by ledger", lambda load: load.resident_tokens),
    ("kv_reserved_tokens", "KV set aside for open turns", lambda load: load.reserved_tokens),
    ("backlog_tokens", "Prompt tokens not prefilled yet", lambda load: load.backlog_tokens),
    ("conversations", "Conversations pinned here", lambda load: load.num_conversations),
)


def _counter(name: str, text: str, label: str, values: dict[E, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"conserve_router_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key.value),), value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    full_name = f"conserve_router_{name}_seconds"
    return HistogramMetricFamily(
        full_name, text, buckets=histogram.buckets(), sum_value=histogram.sum_s
    )


class Exporter:
    """Renders the metrics as text."""

    def __init__(self, metrics: RouterMetrics, observe: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RouterCollector(metrics, observe))

    def text(self) -> bytes:
        """The exposition of this moment."""
        return generate_latest(self._registry)
