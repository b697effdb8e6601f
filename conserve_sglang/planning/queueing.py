"""The queueing approximations the optimizer's columns rest on, each named. Pure.

They are there to choose candidates; what a candidate does is what the simulator says of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Times of one kind of job, in seconds: their mean and the mean of their squares."""

    mean_s: float
    mean_square_s2: float


def service_of(times: Sequence[float]) -> Service:
    """Moments of a sample; no jobs at all are jobs of no time."""
    count = len(times) or 1
    return Service(
        mean_s=math.fsum(times) / count,
        mean_square_s2=math.fsum(time * time for time in times) / count,
    )


def erlang_c(servers: int, busy: float) -> float:
    """Probability that a job has to wait in M/M/c with `busy` < 1 the share of time each server
    works (Erlang 1917), by the recursion of Erlang B."""
    offered = servers * busy
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - busy * (1 - blocked))


def mean_wait_s(servers: int, busy: float, service: Service) -> float:
    """Mean wait in M/G/c: M/M/c's times half of (1 + squared variation of the service time)
    (Allen-Cunneen; exact for one server). Infinite from full use on."""
    if busy >= 1:
        return math.inf
    if busy <= 0 or service.mean_s <= 0:
        return 0.0
    squared = service.mean_square_s2 / service.mean_s**2
    return erlang_c(servers, busy) * service.mean_s / (servers * (1 - busy)) * squared / 2


def wait_quantile_s(servers: int, busy: float, service: Service, level: float) -> float:
    """The wait that a share `level` of the jobs does not exceed, if the waits above zero are
    exponential: their mean is the mean wait over the probability of one."""
    if busy >= 1:
        return math.inf
    mean = mean_wait_s(servers, busy, service)
    if mean <= 0:
        return 0.0
    waits = erlang_c(servers, busy)
    return max(0.0, math.log(waits / (1 - level)) * mean / waits) if level < 1 else math.inf


def poisson_quantile(mean: float, level: float) -> float:
    """The quantile of a count of independent comers, by the normal approximation; at least its
    mean."""
    return mean + max(0.0, normal_quantile(level)) * math.sqrt(mean)


def normal_quantile(level: float) -> float:
    """The standard normal distribution's quantile, by bisection of the error function."""
    if not 0 < level < 1:
        raise ValueError("a level lies between 0 and 1")
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 + math.erf(middle / math.sqrt(2))) / 2 < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
