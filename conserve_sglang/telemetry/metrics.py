"""What the router counts while it works: plain numbers, one `RouterMetrics` a process.

Those of several processes add up (`merge`), and travel between them as plain lists and dicts.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from enum import Enum
from operator import itemgetter
from typing import Any, TypeVar

from conserve_sglang.dispatch import FailureCause
from conserve_sglang.policy.api import PlacementReason, RejectReason

E = TypeVar("E", bound=Enum)
Sample = tuple[float, float, float]

LATENCY_BOUNDS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
)  # fmt: skip
TBT_BOUNDS_S = (
    0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0,
    2.5,
)  # fmt: skip


MOST_MERGED = 4096
"""Recent latencies of all processes together that are kept."""


class Outcome(Enum):
    """How a turn ended."""

    ANSWERED = "answered"
    CLIENT_LEFT = "client_left"
    BROKEN_OFF = "broken_off"
    REFUSED = "refused"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"

    __hash__ = object.__hash__  # Enum's own is Python code, and this one is on the hot path


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def add(self, counts: list[int], sum_s: float) -> None:
        """Count what another histogram of the same bounds has counted."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, counts, strict=True)]
        self.sum_s += sum_s

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Timings:
    """The latencies of turns answered in one tier and prefilled by one role."""

    __slots__ = ("e2e", "tbt", "ttfet", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram()
        self.tbt = Histogram(TBT_BOUNDS_S)
        self.ttfet = Histogram()
        self.e2e = Histogram()


class RecentLatencies:
    """The newest turns' TBT and TTFET, each as (began, ended, seconds) of one monotonic clock.

    What the power controller judges SLOs by: buckets would be too coarse. `most` of each are kept.
    """

    __slots__ = ("tbt", "ttfet")

    def __init__(self, most: int = 512) -> None:
        self.tbt: deque[Sample] = deque(maxlen=most)
        self.ttfet: deque[Sample] = deque(maxlen=most)

    def to_plain(self) -> dict[str, list[Sample]]:
        """Lists that say the same."""
        return {"tbt": list(self.tbt), "ttfet": list(self.ttfet)}

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add another process's; the newest stay."""
        for name, mine in (("tbt", self.tbt), ("ttfet", self.ttfet)):
            samples = sorted([*mine, *map(tuple, plain[name])], key=itemgetter(1))
            mine.clear()
            mine.extend(samples)


class TenantCount:
    """What one tenant has had."""

    __slots__ = ("cached_tokens", "output_tokens", "prompt_tokens", "rejections", "turns")

    def __init__(self) -> None:
        self.turns = 0
        self.rejections = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0


_COUNTERS = (
    "num_retries",
    "num_kv_transfers",
    "kv_transferred_tokens",
    "kv_transferred_bytes",
    "num_kv_misses",
    "num_interruptions",
    "num_continuations",
    "num_unauthorized",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
)
_LATENCIES = ("e2e", "tbt", "ttfet", "ttft")
_OF_TENANTS = ("cached_tokens", "output_tokens", "prompt_tokens", "rejections", "turns")
_BY_ENUM = ("turns", "placements", "rejections", "failures")


class RouterMetrics:
    """What one process of the router has counted since its start.

    `keeps_latencies`: for the power controller, where there is a budget.
    """

    def __init__(self, *, keeps_latencies: bool = False) -> None:
        self.recent = RecentLatencies() if keeps_latencies else None
        self.turns = dict.fromkeys(Outcome, 0)
        self.placements = dict.fromkeys(PlacementReason, 0)
        self.rejections = dict.fromkeys(RejectReason, 0)
        self.failures = dict.fromkeys(FailureCause, 0)
        self.num_retries = 0
        self.num_kv_transfers = 0
        self.kv_transferred_tokens = 0
        self.kv_transferred_bytes = 0
        self.num_kv_misses = 0
        self.num_interruptions = 0
        self.num_continuations = 0
        self.num_unauthorized = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.certificate_expires_at_s: float | None = None  # since 1970; of the clients' listener
        self.timings: dict[tuple[str, str], Timings] = {}
        self.tenants: dict[str, TenantCount] = {}

    def timings_of(self, tier: str, role: str) -> Timings:
        """The histograms of a decoder's tier and of the role that prefilled."""
        return self.timings.get((tier, role)) or self.timings.setdefault((tier, role), Timings())

    def tenant(self, tenant_id: str) -> TenantCount:
        """One tenant's counters."""
        count = self.tenants.get(tenant_id)
        return count or self.tenants.setdefault(tenant_id, TenantCount())

    def to_plain(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers that say the same."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            **{name: _plain(getattr(self, name)) for name in _BY_ENUM},
            "timings": [
                [tier, role, {name: _histogram(timings, name) for name in _LATENCIES}]
                for (tier, role), timings in self.timings.items()
            ],
            "tenants": {
                tenant_id: {name: getattr(count, name) for name in _OF_TENANTS}
                for tenant_id, count in self.tenants.items()
            },
            "certificate_expires_at_s": self.certificate_expires_at_s,
            "recent": None if self.recent is None else self.recent.to_plain(),
        }

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add what another process counted, as its `to_plain` says it."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + plain[name])
        for name in _BY_ENUM:
            values = getattr(self, name)
            for key in values:
                values[key] += plain[name].get(key.value, 0)
        for tier, role, histograms in plain["timings"]:
            timings = self.timings_of(tier, role)
            for name, (counts, sum_s) in histograms.items():
                getattr(timings, name).add(counts, sum_s)
        for tenant_id, counts in plain["tenants"].items():
            count = self.tenant(tenant_id)
            for name, value in counts.items():
                setattr(count, name, getattr(count, name) + value)
        expiries = self.certificate_expires_at_s, plain["certificate_expires_at_s"]
        self.certificate_expires_at_s = min((each for each in expiries if each), default=None)
        if plain["recent"] is not None:
            self.recent = self.recent or RecentLatencies(MOST_MERGED)
            self.recent.merge(plain["recent"])


def _plain(values: dict[E, int]) -> dict[str, int]:
    return {str(key.value): value for key, value in values.items()}


def _histogram(timings: Timings, name: str) -> list[Any]:
    histogram: Histogram = getattr(timings, name)
    return [histogram.counts, histogram.sum_s]
