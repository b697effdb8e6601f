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
        level = rng.random()
        right = min(max(1, bisect_right(self.levels, level)), len(self.levels) - 1)
        low, high = self.levels[right - 1], self.levels[right]
        share = (level - low) / (high - low)
        left_value = self.values[right - 1]
        return left_value + share * (self.values[right] - left_value)
