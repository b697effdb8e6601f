"""How often an energy counter changes."""

import time
from collections.abc import Callable
from itertools import pairwise


def median_gap_s(
    joules: Callable[[], float], clock: Callable[[], float], steps: int, timeout_s: float
) -> float | None:
    """The median of `steps` gaps between changes of a counter, in seconds; blocks meanwhile.

    None if it does not change within `timeout_s`, as when no power is drawn.
    """
    changes: list[float] = []
    last, deadline = joules(), clock() + timeout_s
    while len(changes) <= steps and clock() < deadline:
        now_j = joules()
        if now_j != last:
            changes.append(clock())
            last = now_j
        time.sleep(0.001)
    gaps = sorted(b - a for a, b in pairwise(changes))
    return gaps[len(gaps) // 2] if gaps else None
