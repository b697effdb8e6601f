"""Which points a sweep may measure: powers of two that fit a worker."""

from collections.abc import Iterator
from dataclasses import dataclass

from conserve_sglang.profiler.point import Point, Sweep

_KV_SHARE = 0.8  # of the pool: admission sets some aside for what running requests may yet add
_FEWEST_NEW, _MOST_NEW = 16, 65_536
_BATCHED_LENGTHS = (64, 256, 1024)
_APPENDS = (16, 64, 256, 1024, 4096)
_FEWEST_CACHED = 256
_CONTEXTS = (64, 512, 2048, 8192, 32_768)
_FEWEST_MOVED = 64
_MOST_ASKED = 4096
DECODE_ROOM = 512
"""Tokens that a request of a decode point may write while it is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What fits a worker, in tokens; `max_batch` requests at once."""

    kv_capacity_tokens: int
    context_tokens: int
    chunk_tokens: int
    max_batch: int

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt to be measured."""
        return min(self.context_tokens - 8, round(self.kv_capacity_tokens * _KV_SHARE))


def candidates(limits: Limits, sweeps: frozenset[Sweep]) -> tuple[Point, ...]:
    """Every point of these sweeps that fits."""
    makers = {
        Sweep.PREFILL: _prefill,
        Sweep.APPEND: _append,
        Sweep.DECODE: _decode,
        Sweep.TRANSFER: _transfer,
        Sweep.REQUEST: _request,
        Sweep.HANDOFF: _handoff,
    }
    return tuple(point for sweep in Sweep if sweep in sweeps for point in makers[sweep](limits))


def _prefill(limits: Limits) -> Iterator[Point]:
    name = Sweep.PREFILL.value
    for length in powers(_FEWEST_NEW, min(_MOST_NEW, limits.prompt_tokens)):
        yield Point(sweep=name, new_tokens=length)
    for length in _BATCHED_LENGTHS:
        # Beyond a chunk SGLang splits the batch, and it is another point that is measured.
        for batch in powers(2, min(limits.chunk_tokens // length, limits.max_batch)):
            yield Point(sweep=name, new_tokens=length, batch=batch)


def _append(limits: Limits) -> Iterator[Point]:
    for cached in powers(_FEWEST_CACHED, limits.prompt_tokens, factor=4):
        for new in _APPENDS:
            if new <= cached and new + cached <= limits.prompt_tokens:
                yield Point(sweep=Sweep.APPEND.value, new_tokens=new, cached_tokens=cached)


def _decode(limits: Limits) -> Iterator[Point]:
    most = round(limits.kv_capacity_tokens * _KV_SHARE)
    for batch in powers(1, limits.max_batch):
        for context in _CONTEXTS:
            fits = batch * (context + DECODE_ROOM) <= most
            if fits and context + DECODE_ROOM <= limits.prompt_tokens:
                yield Point(sweep=Sweep.DECODE.value, batch=batch, kv_tokens=batch * context)


def _transfer(limits: Limits) -> Iterator[Point]:
    for length in powers(_FEWEST_MOVED, min(_MOST_NEW, limits.prompt_tokens), factor=4):
        yield Point(sweep=Sweep.TRANSFER.value, new_tokens=length)


def _request(limits: Limits) -> Iterator[Point]:
    for length in powers(_FEWEST_MOVED, min(_MOST_ASKED, limits.prompt_tokens), factor=8):
        yield Point(sweep=Sweep.REQUEST.value, new_tokens=length)


def _handoff(limits: Limits) -> Iterator[Point]:
    for length in powers(_FEWEST_MOVED, min(_MOST_ASKED, limits.prompt_tokens), factor=4):
        yield Point(sweep=Sweep.HANDOFF.value, new_tokens=length)


def powers(first: int, last: int, factor: int = 2) -> Iterator[int]:
    """`first` times powers of `factor`, up to `last`."""
    while first <= last:
        yield first
        first *= factor
