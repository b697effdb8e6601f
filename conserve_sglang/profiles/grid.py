"""Interpolation between points of a grid whose rows need not be equally long.

A grid is rows of rows: its first coordinate picks the two rows around the asked value, each of
which answers for the remaining coordinates, and the answers are joined by a straight line. So a
value is known only where both rows know it, and nothing is made up at the ragged edge.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Coordinates = tuple[float, ...]


class Outside(Exception):
    """What was asked lies beyond the points: which coordinate (from 0), and its known range."""

    def __init__(self, axis: int, value: float, least: float, most: float) -> None:
        super().__init__(axis, value, least, most)
        self.axis, self.value, self.least, self.most = axis, value, least, most


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one coordinate, ascending, and what lies at each: another row or a number."""

    keys: tuple[float, ...]
    items: "tuple[Row | float, ...]"

    def at(self, coordinates: Coordinates, *, extrapolate: bool = False, axis: int = 0) -> float:
        """The value there. Raises `Outside` beyond the points, unless asked to continue the
        line through the two nearest ones (from a single one, its value)."""
        wanted, rest = coordinates[0], coordinates[1:]
        index = bisect_left(self.keys, wanted)

        def answer(number: int) -> float:
            item = self.items[number]
            if isinstance(item, Row):
                return item.at(rest, extrapolate=extrapolate, axis=axis + 1)
            return item

        if index < len(self.keys) and self.keys[index] == wanted:
            return answer(index)
        if 0 < index < len(self.keys):
            return self._between(index - 1, index, wanted, answer)
        if not extrapolate:
            raise Outside(axis, wanted, self.keys[0], self.keys[-1])
        if len(self.keys) == 1:
            return answer(0)
        low = 0 if index == 0 else len(self.keys) - 2
        return self._between(low, low + 1, wanted, answer)

    def _between(self, low: int, high: int, wanted: float, answer: Callable[[int], float]) -> float:
        left, right = self.keys[low], self.keys[high]
        share = (wanted - left) / (right - left)
        return (1 - share) * answer(low) + share * answer(high)


def grid_of(points: Iterable[tuple[Coordinates, float]]) -> Row | None:
    """Rows from points of equally many coordinates; None without any. Of two points at one place
    the later one counts."""
    found: dict[float, list[tuple[Coordinates, float]]] = {}
    for coordinates, value in points:
        found.setdefault(coordinates[0], []).append((coordinates[1:], value))
    if not found:
        return None
    return Row(tuple(sorted(found)), tuple(_item(found[key]) for key in sorted(found)))


def _item(points: Sequence[tuple[Coordinates, float]]) -> Row | float:
    if not points[0][0]:
        return points[-1][1]
    row = grid_of(points)
    assert row is not None
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How well a grid's points are told from the others: each is left out in turn.

    Errors are relative to the point. `num_edge` points cannot be told, as they lie at the edge.
    """

    num_points: int
    num_edge: int
    median_error: float | None
    p95_error: float | None
    worst_error: float | None
    worst_at: Coordinates | None


def leave_one_out(points: Mapping[Coordinates, float]) -> LeftOut:
    """Ask a grid without each point for that point."""
    errors: list[tuple[float, Coordinates]] = []
    for place, value in points.items():
        row = grid_of((at, other) for at, other in points.items() if at != place)
        if row is None or value == 0:
            continue
        try:
            told = row.at(place)
        except Outside:
            continue
        errors.append((abs(told - value) / abs(value), place))
    errors.sort()
    num = len(errors)

    def rank(percent: int) -> float | None:
        return errors[max(0, -(-percent * num // 100) - 1)][0] if errors else None

    return LeftOut(
        num_points=len(points),
        num_edge=len(points) - num,
        median_error=rank(50),
        p95_error=rank(95),
        worst_error=errors[-1][0] if errors else None,
        worst_at=errors[-1][1] if errors else None,
    )
