"""Energy as Prometheus reads it: counters by worker, phase and tier, each with its origin."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABELS = ("worker", "tier", "phase", "origin", "split")


@dataclass(frozen=True, slots=True)
class EnergyLabels:
    """What joules are counted under. `origin` is measured or modelled; `split` own, or attributed
    where several workers share a device."""

    worker: str
    tier: str
    phase: str
    origin: str
    split: str


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device of one host."""

    host: str
    device: str
    kind: str
    origin: str
    joules: float
    watts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What an agent's books lack. `late_s`: work heard of after its time was billed as idle;
    `num_refused_windows`: times that a device's counter was reset, whose joules nobody knows;
    `num_gaps`: times that rows of turns were forgotten or lost with a restart."""

    late_s: float = 0.0
    num_refused_windows: int = 0
    num_lost_files: int = 0
    num_outside_profile: int = 0
    num_unmeasured: int = 0
    num_gaps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """All of it at one moment. `watts` is each worker's mean power over the last settlings."""

    joules: Mapping[EnergyLabels, float] = field(default_factory=dict)
    watts: Mapping[EnergyLabels, float] = field(default_factory=dict)
    devices: Sequence[DeviceReading] = ()
    agents_up: Mapping[str, bool] = field(default_factory=dict)
    settled_age_s: Mapping[str, float] = field(default_factory=dict)
    books: Mapping[str, Books] = field(default_factory=dict)


class EnergyCollector(Collector):
    """Names: GLOSSARY.md. Labels are bounded by the tier map: workers, phases and devices."""

    def __init__(self, read: Callable[[], EnergyReading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        seen = self._read()
        joules = CounterMetricFamily(
            "conserve_router_energy_joules", "Energy by worker and phase, idle apart", labels=LABELS
        )
        for labels, value in seen.joules.items():
            joules.add_metric(_values(labels), value)
        yield joules
        watts = GaugeMetricFamily(
            "conserve_worker_power_watts",
            "Mean power over the last settled windows",
            labels=("worker", "tier", "origin", "split"),
        )
        for labels, value in seen.watts.items():
            watts.add_metric((labels.worker, labels.tier, labels.origin, labels.split), value)
        yield watts
        names = ("host", "device", "kind", "origin")
        total = CounterMetricFamily(
            "conserve_device_energy_joules", "Energy since its agent's start", labels=names
        )
        power = GaugeMetricFamily("conserve_device_power_watts", "Power now", labels=names)
        for each in seen.devices:
            shown = (each.host, each.device, each.kind, each.origin)
            total.add_metric(shown, each.joules)
            if each.watts is not None:
                power.add_metric(shown, each.watts)
        yield total
        yield power
        up = GaugeMetricFamily("conserve_agent_up", "1 while it answers", labels=("host",))
        for host, is_up in seen.agents_up.items():
            up.add_metric((host,), float(is_up))
        yield up
        age = GaugeMetricFamily(
            "conserve_agent_settled_age_seconds", "How far behind its books are", labels=("host",)
        )
        for host, seconds in seen.settled_age_s.items():
            age.add_metric((host,), seconds)
        yield age
        yield from _books(seen)


def _books(seen: EnergyReading) -> Iterator[Metric]:
    for name, text, attribute in (
        ("late_seconds", "Work that was billed as idle", "late_s"),
        ("refused_windows", "Windows without joules, by a counter's reset", "num_refused_windows"),
        ("lost_log_files", "Phase logs that went before they were read", "num_lost_files"),
        ("outside_profile", "Times a profile was extrapolated", "num_outside_profile"),
        ("gaps", "Times that joules of turns were forgotten", "num_gaps"),
    ):
        counter = CounterMetricFamily(f"conserve_agent_{name}", text, labels=("host",))
        for host, books in seen.books.items():
            counter.add_metric((host,), getattr(books, attribute))
        yield counter
    text = "Workers whose energy no meter tells"
    unmeasured = GaugeMetricFamily("conserve_agent_unmeasured_workers", text, labels=("host",))
    for host, books in seen.books.items():
        unmeasured.add_metric((host,), books.num_unmeasured)
    yield unmeasured


def _values(labels: EnergyLabels) -> tuple[str, ...]:
    return tuple(getattr(labels, name) for name in LABELS)
