"""What generators ask of a source of randomness. `random.Random(seed)` is one."""

from typing import Protocol


class Rng(Protocol):
    """The methods of `random.Random` that are used here; the caller owns the seed."""

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def expovariate(self, lambd: float) -> float:
        """Exponential with mean 1 / lambd."""
        ...

    def gammavariate(self, alpha: float, beta: float) -> float:
        """Gamma with mean alpha * beta."""
        ...
