"""A distribution given by its quantiles."""

from bisect import bisect_right
from dataclasses import dataclass

from conserve_sglang.workload.rng import Rng

LEVELS = (
    0.0, 0.01, 0.02, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """A distribution by its quantiles: `values[i]` is not exceeded with probability
    `levels[i]`, and between two of them a value is drawn uniformly."""

    levels: tuple[float, ...] = LEVELS
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.values):
            raise ValueError("a distribution needs as many values as levels")

    def draw(self, rng: Rng) -> int:
        """One whole number, at least 1."""
        return max(1, round(self.draw_value(rng)))

    def draw_value(self, rng: Rng) -> float:
        """One value."""
        level, levels, values = rng.random(), self.levels, self.values
        right = bisect_right(levels, level, 1, len(levels) - 1)
        low, left_value = levels[right - 1], values[right - 1]
        share = (level - low) / (levels[right] - low)
        return left_value + share * (values[right] - left_value)
