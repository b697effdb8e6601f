"""Percentiles of the last while, from histograms that only ever grow."""

from collections import deque
from collections.abc import Callable, Sequence

from conserve_sglang.power.observation import Latency
from conserve_sglang.telemetry.metrics import Histogram, RouterMetrics

Pick = Callable[[RouterMetrics], Sequence[Histogram]]


class LatencyWindow:
    """The 95th percentile of what was observed in the last `window_s`, over some histograms.

    Within a bucket values are taken as spread evenly, as Prometheus does; above the last bound
    there is but that bound to tell.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._past: deque[tuple[float, list[int]]] = deque()

    def look(self, histograms: Sequence[Histogram], now_s: float) -> Latency:
        """Take in the histograms as they are now."""
        counts = [sum(column) for column in zip(*(h.counts for h in histograms), strict=True)]
        bounds = histograms[0].bounds_s if histograms else ()
        self._past.append((now_s, counts))
        while len(self._past) > 1 and self._past[1][0] <= now_s - self._window_s:
            self._past.popleft()
        before = self._past[0][1]
        before += [0] * (len(counts) - len(before))  # none had begun then
        recent = [now - then for now, then in zip(counts, before, strict=True)]
        return Latency(p95_s=_p95(recent, bounds), num_samples=sum(recent))


def _p95(counts: Sequence[int], bounds: Sequence[float]) -> float:
    rank = 0.95 * sum(counts)
    if not rank:
        return 0.0
    seen = 0
    for number, count in enumerate(counts):
        if seen + count >= rank:
            low_s = bounds[number - 1] if number else 0.0
            high_s = bounds[number] if number < len(bounds) else low_s
            return low_s + (high_s - low_s) * (rank - seen) / count
        seen += count
    return bounds[-1]
