"""Which point to measure next: the one that closes the widest gap.

The criterion: each axis of a sweep (batch, context, ...) has its values taken farthest first, in
log space: the least, the most, then again and again the value farthest from those taken. After any
number of values the gaps left are at most twice as wide as the best choice of as many could leave
(Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science
38, 1985). A profile interpolates along rows, so of two axes the points come in shells: a shell adds
one value to each axis, its new row from end to end first. So a sweep that is cut short is coarse
everywhere instead of fine in one corner, and has no row that only begins. Sweeps take turns, shell
by shell. Pure.
"""

from collections.abc import Callable, Iterable, Sequence

from conserve_sglang.profiler.point import Point, Sweep

_ORDER = {sweep.value: number for number, sweep in enumerate(Sweep)}
Rank = tuple[int, ...]


class Planner:
    """Orders the candidates of all sweeps; what is measured already counts."""

    def __init__(self, candidates: Sequence[Point]) -> None:
        ranks = {point: rank for group in _by_sweep(candidates) for point, rank in _ranked(group)}
        self._left = sorted(ranks, key=lambda point: ranks[point])

    def done(self, point: Point) -> None:
        """It is measured, or it is found to be out of reach and not to be tried again."""
        if point in self._left:
            self._left.remove(point)

    @property
    def left(self) -> tuple[Point, ...]:
        """What is not measured yet, in order."""
        return tuple(self._left)

    def next(self, affords: Callable[[Point], bool] = lambda point: True) -> Point | None:
        """The first candidate that can be afforded; None when none can."""
        return next((point for point in self._left if affords(point)), None)


def farthest_first(values: Iterable[float]) -> list[float]:
    """The least, the most, then always the one farthest from all before; the lesser of equals."""
    left = sorted(set(values))
    order = [left.pop(0)]
    while left:
        following = max(left, key=lambda v: (min(abs(v - taken) for taken in order), -v))
        left.remove(following)
        order.append(following)
    return order


def _ranked(points: Sequence[Point]) -> Iterable[tuple[Point, Rank]]:
    """Each point of a sweep with its place in the order: shell, sweep, row before column."""
    rows: dict[float, list[Point]] = {}
    for point in points:
        rows.setdefault(point.axes[0], []).append(point)
    for row, value in enumerate(farthest_first(rows)):
        at = {point.axes[1]: point for point in rows[value]}
        for column, length in enumerate(farthest_first(at)):
            shell = max(row, column)
            yield at[length], (shell, _ORDER[at[length].sweep], int(row < shell), column, row)


def _by_sweep(points: Iterable[Point]) -> Iterable[list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.sweep, []).append(point)
    return groups.values()
