"""When a point has been repeated often enough.

A point's value is the median of its repeats, and its confidence interval the exact one of order
statistics, which asks nothing of how the repeats are distributed: on a machine that does something
else now and then they are anything but normal (Hoefler and Belli, "Scientific benchmarking of
parallel computing systems", SC 2015). It takes six repeats to have one at 95 %. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The median of repeats. `rel_ci` is half the width of its 95 % confidence interval over the
    median; None with too few repeats to have one."""

    value: float
    rel_ci: float | None
    num_repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """Enough is a `rel_ci` below `most_rel_ci`, or so many repeats, or so many seconds."""

    most_rel_ci: float = 0.03
    most_repeats: int = 40
    most_seconds: float = 20.0

    def is_enough(self, repeats: Sequence[float], seconds: float) -> bool:
        """Whether to stop, having spent `seconds` on this point; never before a first repeat."""
        if not repeats:
            return False
        if len(repeats) >= self.most_repeats or seconds >= self.most_seconds:
            return True
        rel_ci = estimate(repeats).rel_ci
        return rel_ci is not None and rel_ci < self.most_rel_ci


def estimate(repeats: Sequence[float]) -> Estimate:
    """Median and confidence interval. Raises ValueError for no repeats or one that is not > 0."""
    if not repeats or min(repeats) <= 0:
        raise ValueError("an estimate needs repeats, all of them above 0")
    ordered = sorted(repeats)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    rank = lower_rank(count)
    if rank is None:
        return Estimate(value=middle, rel_ci=None, num_repeats=count)
    width = ordered[count - rank] - ordered[rank - 1]
    return Estimate(value=middle, rel_ci=width / 2 / middle, num_repeats=count)


@lru_cache
def lower_rank(count: int) -> int | None:
    """Which of `count` ordered samples, from 1, begins the median's interval; it ends as far from
    the other end. None when even the extremes cover too little."""
    tail, rank = 0.0, 0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if tail > (1 - CONFIDENCE) / 2:
            break
        rank += 1
    return rank or None
