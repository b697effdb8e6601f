"""Where a series has become steady.

MSER-5 (White, "An effective truncation heuristic for bias reduction in simulation output",
Simulation 69, 1997; in batches of five as White, Cobb and Spratt, WSC 2000): leave out as much of
the beginning as makes the standard error of the mean of the rest least, half of it at most. Pure.
"""

from collections.abc import Sequence

BATCH = 5


def steady_from(series: Sequence[float], batch: int = BATCH) -> int:
    """The index at which the steady part begins. A series too short to tell is all steady."""
    count = len(series) // batch
    if count < 4:
        return 0
    means = [sum(series[i * batch : (i + 1) * batch]) / batch for i in range(count)]
    best, best_error = 0, float("inf")
    for cut in range(count // 2 + 1):
        rest = means[cut:]
        centre = sum(rest) / len(rest)
        error = sum((value - centre) ** 2 for value in rest) / len(rest) ** 2
        if error < best_error:
            best, best_error = cut, error
    return best * batch


def typical(series: Sequence[float], batch: int = 8) -> float:
    """The median of the means of `batch` values each. Raises ValueError when empty.

    A gap that was delivered late makes the next one short, and a machine that stutters touches few
    of the means."""
    if not series:
        raise ValueError("no values")
    size = min(batch, len(series))
    means = sorted(
        sum(series[i : i + size]) / size for i in range(0, len(series) - size + 1, size)
    )  # fmt: skip
    return (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2
