"""The affine function of two coordinates that is nearest to some points, none of its terms below 0.

Nearest in relative terms: the sum of squared relative errors is least.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Sample = tuple[float, float, float]
"""Two coordinates and a value above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """`base + first x + second y`, and its errors, relative to the points it was fitted to."""

    base: float
    first: float
    second: float
    median_error: float
    worst_error: float

    def at(self, x: float, y: float) -> float:
        """Its value."""
        return self.base + self.first * x + self.second * y


def fit_affine(samples: Sequence[Sample]) -> Affine:
    """Fit to points. Raises ValueError without any."""
    if not samples:
        raise ValueError("an affine function needs points to be fitted to")
    terms = [0, 1, 2]
    while True:
        found = dict(zip(terms, _solve(samples, terms), strict=True))
        least = min(found, key=lambda term: found[term])
        if found[least] >= 0 or len(terms) == 1:
            break
        terms.remove(least)
    base, first, second = (max(0.0, found.get(term, 0.0)) for term in range(3))
    errors = sorted(abs(base + first * x + second * y - v) / v for x, y, v in samples)
    return Affine(
        base=base,
        first=first,
        second=second,
        median_error=errors[(len(errors) - 1) // 2],
        worst_error=errors[-1],
    )


def _solve(samples: Sequence[Sample], terms: Sequence[int]) -> list[float]:
    """The least squares coefficients of some of the terms 1, x and y. A term that the points
    cannot tell from those before it gets 0."""
    rows = [[(1.0, x, y)[term] / value for term in terms] for x, y, value in samples]
    size = len(terms)
    scale = [max(1e-300, *(abs(row[i]) for row in rows)) for i in range(size)]
    matrix = [
        [sum(row[i] * row[j] / scale[i] / scale[j] for row in rows) for j in range(size)]
        + [sum(row[i] / scale[i] for row in rows)]
        for i in range(size)
    ]
    for i in range(size):
        if matrix[i][i] < 1e-12:
            matrix[i] = [0.0] * (size + 1)
            continue
        for k in range(size):
            if k != i:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [
        matrix[i][size] / matrix[i][i] / scale[i] if matrix[i][i] > 0 else 0.0 for i in range(size)
    ]
