"""What a scrape of the router's metrics says, and what two of them say about the time between."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one exposition; `at_s` on one monotonic clock."""

    at_s: float
    samples: Mapping[str, tuple[tuple[Labels, float], ...]]

    def each(self, name: str, **wanted: str) -> Iterator[tuple[Labels, float]]:
        """The samples of a name that have these labels."""
        for labels, value in self.samples.get(name, ()):
            if all(labels.get(key) == each for key, each in wanted.items()):
                yield labels, value

    def total(self, name: str, **wanted: str) -> float | None:
        """The sum of such samples; None if there is none."""
        values = [value for _, value in self.each(name, **wanted)]
        return sum(values) if values else None


def read_scrape(text: str, at_s: float) -> Scrape:
    """Read an exposition. Raises ValueError if it is none."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Scrape(at_s, {name: tuple(found) for name, found in samples.items()})


def rate(before: Scrape, after: Scrape, name: str, **wanted: str) -> float | None:
    """A counter's growth a second; None if it is unknown or began anew meanwhile."""
    was, now = before.total(name, **wanted) or 0.0, after.total(name, **wanted)
    passed_s = after.at_s - before.at_s
    if now is None or now < was or passed_s <= 0:
        return None
    return (now - was) / passed_s


def quantile(
    before: Scrape | None, after: Scrape, name: str, share: float, **wanted: str
) -> float | None:
    """A histogram's quantile over the time between, as Prometheus computes it from buckets.

    None without an observation. One in the last, open bucket counts as that bucket's lower bound.
    """
    counts = _buckets(after, name, wanted)
    if before is not None:
        old = _buckets(before, name, wanted)
        counts = {bound: count - old.get(bound, 0.0) for bound, count in counts.items()}
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if total <= 0 or min(counts.values()) < 0:
        return None
    rank, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = counts[bound]
        if count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / max(count - below, 1e-12)
        lower, below = bound, count
    return lower


def _buckets(scrape: Scrape, name: str, wanted: Mapping[str, str]) -> dict[float, float]:
    counts: dict[float, float] = {}
    for labels, value in scrape.each(f"{name}_bucket", **wanted):
        bound = float(labels["le"])
        counts[bound] = counts.get(bound, 0.0) + value
    return counts
