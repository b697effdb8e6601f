"""Percentile and geometric mean, each with its rule stated."""

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of an ascending sequence: the smallest value that at least
    `percent` per cent of the values do not exceed. Raises ValueError for an empty sequence."""
    if not ordered:
        raise ValueError("percentile of no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must lie in 0..100, not {percent}")
    rank = max(1, math.ceil(len(ordered) * percent / 100))
    return ordered[rank - 1]


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive values. Raises ValueError for none, or for one <= 0."""
    if not values or min(values) <= 0:
        raise ValueError("geometric mean needs positive values")
    return math.exp(math.fsum(map(math.log, values)) / len(values))
