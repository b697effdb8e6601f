"""When conversations arrive, and how long their tools take."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from conserve_sglang.workload.plan import ConversationPlan
from conserve_sglang.workload.quantiles import Quantiles
from conserve_sglang.workload.rng import Rng

LEAST_CV, MOST_CV = 1e-3, 1e3
"""Of gamma gaps. Below, arrivals are as regular as a clock; above, nearly all gaps are smaller than
any float."""


def poisson_arrivals(rate_per_s: float, rng: Rng) -> Iterator[float]:
    """Endless arrival times of a Poisson process, from 0."""
    _check_rate(rate_per_s)
    now = 0.0
    while True:
        now += rng.expovariate(rate_per_s)
        yield now


def gamma_arrivals(rate_per_s: float, cv: float, rng: Rng) -> Iterator[float]:
    """Endless arrival times with gamma gaps. `cv`, their coefficient of variation, is 1 for
    Poisson and larger for bursts."""
    _check_rate(rate_per_s)
    if not LEAST_CV <= cv <= MOST_CV:
        raise ValueError(f"cv must lie between {LEAST_CV:g} and {MOST_CV:g}")
    alpha = 1 / cv**2
    now = 0.0
    while True:
        now += rng.gammavariate(alpha, 1 / (alpha * rate_per_s))
        yield now


def trace_arrivals(times: Sequence[float], rate_per_s: float | None = None) -> Iterator[float]:
    """Endless arrival times with the gaps of recorded ones, from 0: where they end they begin anew,
    a mean gap later. They are stretched to `rate_per_s` on average if that is given.

    Raises ValueError for less than two times, or for times that are all the same.
    """
    ordered = sorted(times)
    span = ordered[-1] - ordered[0] if ordered else 0.0
    if span <= 0:
        raise ValueError("arrival times need some spread")
    mean_gap = span / (len(ordered) - 1)
    if rate_per_s is not None:
        _check_rate(rate_per_s)
    factor = 1.0 if rate_per_s is None else 1 / (rate_per_s * mean_gap)
    gaps = [mean_gap, *(after - before for before, after in pairwise(ordered))]
    now = -mean_gap * factor
    while True:
        for gap in gaps:
            now += gap * factor
            yield now


def drawn_gaps(quantiles: Quantiles, rng: Rng) -> Iterator[float]:
    """Endless tool gaps of a distribution, in seconds."""
    while True:
        yield quantiles.draw_value(rng)


def with_gaps(
    conversations: Iterable[ConversationPlan], gaps: Iterator[float]
) -> Iterator[ConversationPlan]:
    """The same conversations with other tool gaps, in seconds, turn by turn."""
    for conversation in conversations:
        first, *later = conversation.turns
        turns = (first, *(replace(turn, gap_s=next(gaps)) for turn in later))
        yield replace(conversation, turns=turns)


def with_arrivals(
    conversations: Iterable[ConversationPlan], times: Iterator[float]
) -> Iterator[ConversationPlan]:
    """The same conversations, arriving at `times` in the order they are given."""
    for each in conversations:
        yield ConversationPlan(
            conversation_id=each.conversation_id,
            turns=each.turns,
            arrived_at_s=next(times),
            tenant=each.tenant,
        )


def _check_rate(rate_per_s: float) -> None:
    if rate_per_s <= 0:
        raise ValueError("rate_per_s must be positive")
