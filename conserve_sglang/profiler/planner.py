"""Which point to measure next: the one that closes the widest gap.

The criterion: how far, in log space, a candidate is from the nearest point that is measured,
each axis of its sweep scaled to 1. Interpolation is worst there. Taking the farthest point again and
again leaves, after any number of points, gaps at most twice as wide as the best choice of as many
points could (Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical
Computer Science 38, 1985). So a sweep that is cut short is coarse everywhere instead of fine in
one corner. Pure.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from conserve_sglang.profiler.point import Point, Sweep

_FEW = 3  # points of a sweep that come before its gaps are compared with the other sweeps'


class Planner:
    """Orders the candidates of all sweeps; what is measured already counts."""

    def __init__(self, candidates: Sequence[Point]) -> None:
        self._spans = {name: _spans(group) for name, group in _by_sweep(candidates).items()}
        self._gaps = {point: math.inf for point in candidates}
        self._num_done = dict.fromkeys(self._spans, 0)

    def done(self, point: Point) -> None:
        """It is measured, or it is found to be out of reach and not to be tried again."""
        self._gaps.pop(point, None)
        self._num_done[point.sweep] = self._num_done.get(point.sweep, 0) + 1
        for other, gap in self._gaps.items():
            if other.sweep == point.sweep:
                self._gaps[other] = min(gap, self._distance(point, other))

    @property
    def left(self) -> tuple[Point, ...]:
        """What is not measured yet."""
        return tuple(self._gaps)

    def next(self, affords: Callable[[Point], bool] = lambda point: True) -> Point | None:
        """The candidate in the widest gap of those that can be afforded; None when none can."""
        allowed = [point for point in self._gaps if affords(point)]
        if not allowed:
            return None
        return max(allowed, key=self._urgency)

    def _urgency(self, point: Point) -> tuple[float, float, float]:
        """Of a sweep not begun the smallest point comes first; the farthest from it is next."""
        num_done = self._num_done[point.sweep]
        return (-float(min(num_done, _FEW)), self._gaps[point], -float(point.work))

    def _distance(self, one: Point, other: Point) -> float:
        spans = self._spans.get(one.sweep, ())
        pairs = zip(one.place, other.place, spans, strict=False)
        return math.sqrt(sum(((a - b) / span) ** 2 for a, b, span in pairs if span))


def all_sweeps(points: Iterable[Point]) -> frozenset[Sweep]:
    """The sweeps that points belong to."""
    return frozenset(Sweep(point.sweep) for point in points)


def _by_sweep(points: Iterable[Point]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.sweep, []).append(point)
    return groups


def _spans(points: Sequence[Point]) -> tuple[float, ...]:
    axes = zip(*(point.place for point in points), strict=True)
    return tuple(max(axis) - min(axis) for axis in axes)
