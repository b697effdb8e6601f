"""What can be measured, as values: one operating point of a worker."""

import math
from dataclasses import dataclass
from enum import Enum


class Sweep(Enum):
    """A family of points that are interpolated together."""

    PREFILL = "prefill"
    APPEND = "append"
    DECODE = "decode"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """One operating point, lengths in tokens.

    Prefill and append: each of `batch` prompts has `new_tokens` to prefill after `cached_tokens`
    that are resident. Decode: `batch` requests hold `kv_tokens` together. Transfer: `new_tokens`
    are moved. What a sweep has no use for is 0.
    """

    sweep: str
    new_tokens: int = 0
    cached_tokens: int = 0
    batch: int = 1
    kv_tokens: int = 0

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return (
            f"{self.sweep} new={self.new_tokens} cached={self.cached_tokens}"
            f" batch={self.batch} kv={self.kv_tokens}"
        )

    @property
    def work(self) -> int:
        """Tokens it deals with: what its cost grows with, roughly."""
        return self.batch * (self.new_tokens + self.cached_tokens) + self.kv_tokens

    @property
    def place(self) -> tuple[float, ...]:
        """Where it lies in log space, in octaves."""
        axes = (self.new_tokens, self.cached_tokens, self.batch, self.kv_tokens)
        return tuple(math.log2(value + 1) for value in axes)

    def describe(self) -> str:
        """In words, for a progress line."""
        if self.sweep == Sweep.DECODE.value:
            return f"decode, batch {self.batch}, {self.kv_tokens:,} KV tokens"
        if self.sweep == Sweep.TRANSFER.value:
            return f"transfer of {self.new_tokens:,} tokens"
        cached = f" after {self.cached_tokens:,} cached" if self.cached_tokens else ""
        times = f" x {self.batch}" if self.batch > 1 else ""
        return f"{self.sweep} of {self.new_tokens:,}{times}{cached}"
