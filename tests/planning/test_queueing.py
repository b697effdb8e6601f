"""The queueing formulas agree with known values and with queues played out."""

import heapq
import math
import random

import pytest

from conserve_sglang.core.stats import percentile
from conserve_sglang.planning.queueing import (
    erlang_c,
    mean_wait_s,
    normal_quantile,
    poisson_quantile,
    service_of,
    wait_quantile_s,
)


def waits_of(servers: int, busy: float, times: list[float]) -> list[float]:
    """Jobs arriving at random, served in order."""
    rng = random.Random(5)
    rate = busy * servers / (sum(times) / len(times))
    free_at = [0.0] * servers
    now, waits = 0.0, []
    for time in times:
        now += rng.expovariate(rate)
        start = max(now, heapq.heappop(free_at))
        heapq.heappush(free_at, start + time)
        waits.append(start - now)
    return waits


@pytest.mark.parametrize(
    ("servers", "busy", "expected"),
    [(1, 0.7, 0.7), (2, 0.5, 1 / 3), (10, 0.8, 0.4092)],  # the last from Erlang's tables
)
def test_the_probability_of_waiting_is_erlangs(servers: int, busy: float, expected: float) -> None:
    assert erlang_c(servers, busy) == pytest.approx(expected, rel=1e-3)


def test_one_server_is_pollaczek_khinchine() -> None:
    constant = service_of([2.0])
    assert mean_wait_s(1, 0.8, constant) == pytest.approx(0.8 * 2.0 / (2 * 0.2))
    assert mean_wait_s(1, 1.0, constant) == math.inf
    assert mean_wait_s(3, 0.0, constant) == 0.0


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.6), (1, 0.9), (4, 0.8), (16, 0.9)])
def test_waits_are_near_those_of_a_queue_played_out(servers: int, busy: float) -> None:
    rng = random.Random(3)
    times = [rng.uniform(0.2, 1.0) for _ in range(60_000)]
    service = service_of(times)
    waits = sorted(waits_of(servers, busy, times))
    mean = sum(waits) / len(waits)
    assert mean_wait_s(servers, busy, service) == pytest.approx(mean, rel=0.2)
    told = wait_quantile_s(servers, busy, service, 0.95)
    assert told == pytest.approx(percentile(waits, 95), rel=0.2)


def test_a_larger_pool_waits_less_at_the_same_use() -> None:
    service = service_of([1.0, 3.0])
    waits = [wait_quantile_s(servers, 0.8, service, 0.95) for servers in (1, 2, 4, 8, 16)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < waits[0] / 5


def test_quantiles_are_the_normal_distributions() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.6449, abs=1e-4)
    assert poisson_quantile(100.0, 0.95) == pytest.approx(116.449, abs=1e-2)
    assert poisson_quantile(100.0, 0.3) == 100.0
    with pytest.raises(ValueError, match="level"):
        normal_quantile(1.0)
