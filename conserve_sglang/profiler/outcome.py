"""What measuring one point gave."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.stopping import estimate

Clock = Literal["scheduler", "client"]
"""Whose clock: the worker's scheduler's, or the asking client's, with HTTP and tokenizer in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One point as measured, or why it could not be.

    `seconds` is the median of the repeats: a prefill of the whole batch, one decode step, one
    transfer. `watts` is the mean power of one device meanwhile. `kv_tokens` is what a decode batch
    really held at the mean. `took_s` is what measuring it cost, `prepare_s` what of that came
    before the first repeat.
    """

    point: Point
    took_s: float
    prepare_s: float = 0.0
    seconds: float | None = None
    rel_ci: float | None = None
    num_repeats: int = 0
    watts: float | None = None
    clock: Clock = "scheduler"
    kv_tokens: int | None = None
    failure: str | None = None


def outcome_of(  # noqa: PLR0913 - the parts of one value
    point: Point,
    repeats: Sequence[float],
    took_s: float,
    *,
    prepare_s: float,
    clock: Clock,
    watts: float | None = None,
    kv_tokens: int | None = None,
) -> Outcome:
    """The outcome of some repeats; a failure without any."""
    if not repeats:
        return Outcome(point=point, took_s=took_s, failure="no repeat of it was valid")
    found = estimate(repeats)
    return Outcome(
        point=point,
        took_s=took_s,
        prepare_s=prepare_s,
        seconds=found.value,
        rel_ci=found.rel_ci,
        num_repeats=found.num_repeats,
        watts=watts,
        clock=clock,
        kv_tokens=kv_tokens,
    )


def surest(outcomes: Iterable[Outcome]) -> dict[Point, Outcome]:
    """Of each point the outcome with the narrowest interval; one that failed only for lack of
    another."""
    found: dict[Point, Outcome] = {}
    for one in outcomes:
        known = found.get(one.point)
        if known is None or _doubt(one) < _doubt(known):
            found[one.point] = one
    return found


def doubt(outcome: Outcome) -> float:
    """How wide its interval is; without one, infinitely. A failure has nothing to be doubted."""
    return 0.0 if outcome.seconds is None else _doubt(outcome)


def _doubt(outcome: Outcome) -> float:
    if outcome.seconds is None:
        return math.inf
    return sys.float_info.max if outcome.rel_ci is None else outcome.rel_ci
