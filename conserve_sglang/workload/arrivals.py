"""When conversations arrive."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from conserve_sglang.workload.plan import ConversationPlan
from conserve_sglang.workload.rng import Rng


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
    if cv <= 0:
        raise ValueError("cv must be positive")
    alpha = 1 / cv**2
    now = 0.0
    while True:
        now += rng.gammavariate(alpha, 1 / (alpha * rate_per_s))
        yield now


def with_arrivals(
    conversations: Iterable[ConversationPlan], times: Iterator[float]
) -> Iterator[ConversationPlan]:
    """The same conversations, arriving at `times` in the order they are given."""
    for conversation in conversations:
        yield replace(conversation, arrived_at_s=next(times))


def _check_rate(rate_per_s: float) -> None:
    if rate_per_s <= 0:
        raise ValueError("rate_per_s must be positive")
