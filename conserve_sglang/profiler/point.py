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
    REQUEST = "request"
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """One operating point, lengths in tokens.

    Prefill and append: each of `batch` prompts has `new_tokens` to prefill after `cached_tokens`
    that are resident. Decode: `batch` requests hold `kv_tokens` together. Transfer: `new_tokens`
    are moved. Request and handoff: a prompt has `new_tokens`. What a sweep has no use for is 0.
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
    def longest(self) -> int:
        """Tokens of one of its prompts, or the context of one of its requests; at least 1."""
        return max(1, self.new_tokens + self.cached_tokens + self.kv_tokens // self.batch)

    @property
    def axes(self) -> tuple[float, float]:
        """Its row and its place there, in octaves: batch and length, or what comes before an
        append and its length; a decode point's length is the context of one request."""
        if self.sweep == Sweep.APPEND.value:
            return math.log2(self.cached_tokens), math.log2(self.new_tokens)
        length = self.kv_tokens / self.batch if self.kv_tokens else self.new_tokens
        return math.log2(self.batch), math.log2(length)

    def describe(self) -> str:
        """In words, for a progress line."""
        if self.sweep == Sweep.DECODE.value:
            return f"decode, batch {self.batch}, {self.kv_tokens:,} KV tokens"
        if self.sweep == Sweep.TRANSFER.value:
            return f"transfer of {self.new_tokens:,} tokens"
        if self.sweep in (Sweep.REQUEST.value, Sweep.HANDOFF.value):
            return f"{self.sweep} of {self.new_tokens:,} tokens, beyond its prefill"
        cached = f" after {self.cached_tokens:,} cached" if self.cached_tokens else ""
        times = f" x {self.batch}" if self.batch > 1 else ""
        return f"{self.sweep} of {self.new_tokens:,}{times}{cached}"
