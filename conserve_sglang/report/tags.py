"""Words beside points, where they cover neither points, nor lines, nor each other. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, dist

Place = tuple[float, float]
CHARACTER, HEIGHT = 6.8, 10.0
"""Pixels of a bold capital letter at 11 px, and how high it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """Words of a point, and where they stand: the middle of their lower edge."""

    words: str
    x: float
    y: float

    def covers(self, place: Place, air: float = 1.5) -> bool:
        """Whether a place lies under the words."""
        half = CHARACTER * len(self.words) / 2 + air
        x, y = place
        return abs(x - self.x) < half and self.y - HEIGHT - air < y < self.y + air

    def crosses(self, other: "Tag") -> bool:
        """Whether two overlap."""
        half = CHARACTER * (len(self.words) + len(other.words)) / 2
        return abs(self.x - other.x) < half and abs(self.y - other.y) < HEIGHT


def tags(
    points: Sequence[tuple[Place, float, str]],
    lines: Sequence[Sequence[Place]],
    width: float,
    height: float,
) -> list[Tag]:
    """Words for points (place, radius, words; "" for none) in a drawing of that size. Points that
    touch share their words. Where no place is free, the one that covers least."""
    taken = [*_rims(points), *(place for line in lines for place in _along(line))]
    found: list[Tag] = []
    for places, radius, words in _clusters(points):
        options = [
            tag
            for tag in _around(places, radius, words)
            if CHARACTER * len(words) / 2 <= tag.x <= width - CHARACTER * len(words) / 2
            and HEIGHT <= tag.y <= height
        ]
        if options:
            found.append(min(options, key=lambda tag: _harm(tag, taken, found)))
    return found


def _harm(tag: Tag, taken: Sequence[Place], placed: Sequence[Tag]) -> int:
    return sum(map(tag.covers, taken)) + 1000 * sum(map(tag.crosses, placed))


def _rims(points: Sequence[tuple[Place, float, str]]) -> Iterator[Place]:
    for (x, y), radius, _ in points:
        for across in (-1, 0, 1):
            for down in (-1, 0, 1):
                yield x + across * radius, y + down * radius


def _along(line: Sequence[Place]) -> Iterator[Place]:
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, ceil(dist((x0, y0), (x1, y1)) / 3))
        for step in range(steps + 1):
            yield x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps


def _clusters(
    points: Sequence[tuple[Place, float, str]],
) -> Iterator[tuple[list[Place], float, str]]:
    rest = [point for point in points if point[2]]
    while rest:
        cluster = [rest.pop(0)]
        for one in cluster:
            near = [each for each in rest if dist(one[0], each[0]) < one[1] + each[1]]
            rest = [each for each in rest if each not in near]
            cluster.extend(near)
        words = ", ".join(sorted(point[2] for point in cluster))
        yield [point[0] for point in cluster], max(point[1] for point in cluster), words


def _around(places: Sequence[Place], radius: float, words: str) -> Iterator[Tag]:
    left, right = min(x for x, _ in places) - radius, max(x for x, _ in places) + radius
    top, bottom = min(y for _, y in places) - radius, max(y for _, y in places) + radius
    half = CHARACTER * len(words) / 2
    x, y = (left + right) / 2, (top + bottom + HEIGHT) / 2
    for air in (4, 12):
        yield Tag(words=words, x=right + air + half, y=y)
        yield Tag(words=words, x=x, y=top - air)
        yield Tag(words=words, x=left - air - half, y=y)
        yield Tag(words=words, x=x, y=bottom + air + HEIGHT)
        for across in (right + half + air / 2, left - half - air / 2):
            yield Tag(words=words, x=across, y=top - air / 2)
            yield Tag(words=words, x=across, y=bottom + air / 2 + HEIGHT)
