"""Axes: where a value lies, and which values are worth a tick. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SMALLEST = 1e-3
"""Where all ticks are smaller, they are written with exponents."""
LARGEST_OF_THREE_DIGITS = 999.5
"""What is not less is 1,000 when rounded to three digits."""
_UNITS = ((1e9, "G"), (1e6, "M"))
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight line from `low`..`high` in values to `start`..`end` in pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from `low` to `high`, about so many, two at least: steps of 1, 2 or 5 times a
    power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.9) * power
    values = _multiples(step, low, high)
    return values if len(values) > 1 else _multiples(power, low, high)


def _multiples(step: float, low: float, high: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def extent(values: Iterable[float], from_zero: bool) -> tuple[float, float]:
    """The range an axis must show: from 0 if asked, with some air; never empty."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if from_zero:
        low = min(0.0, low)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if from_zero else low - air), high + air


def tick_labels(values: Sequence[float]) -> list[str]:
    """What stands beside ticks: all with the decimals that it takes to tell neighbours apart."""
    step = min((high - low for low, high in pairwise(values)), default=0.0)
    if step <= 0:
        return [short(value) for value in values]
    size = max(map(abs, values))
    if size < SMALLEST:
        digits = max(0, _power(size) - _power(step))
        return [f"{value:.{digits}e}" if value else "0" for value in values]
    scale, unit = next(((limit, name) for limit, name in _UNITS if size >= limit), (1.0, ""))
    digits = max(0, -_power(step / scale))
    return [f"{value / scale:,.{digits}f}{unit}" if value else "0" for value in values]


def _power(value: float) -> int:
    """The power of ten of its first digit."""
    return math.floor(math.log10(value) + _ROUNDING)


def short(value: float) -> str:
    """A number in few characters: three significant digits, all digits from 1,000 on, millions as
    M."""
    if not math.isfinite(value):
        return "never"
    size = abs(value)
    for limit, unit in _UNITS:
        if size >= limit:
            return f"{short(value / limit)}{unit}" if size < 1e12 else f"{value:.3g}"
    return f"{value:,.0f}" if size >= LARGEST_OF_THREE_DIGITS else f"{value:.3g}"
