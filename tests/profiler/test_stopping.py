"""Repeats end when they agree, when there are enough, or when time is up."""

import random

import pytest

from conserve_sglang.profiler.stopping import StopRule, estimate, lower_rank


def test_six_repeats_are_needed_for_an_interval() -> None:
    assert estimate([1.0] * 5).rel_ci is None
    assert estimate([1.0] * 6).rel_ci == 0.0


@pytest.mark.parametrize(("count", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (20, 6), (40, 14)])
def test_ranks_are_those_of_the_tables(count: int, rank: int | None) -> None:
    """As in tables of the sign test's 95 % interval."""
    assert lower_rank(count) == rank


def test_one_slow_repeat_moves_neither_value_nor_interval_of_many() -> None:
    steady = [1.0 + 0.001 * n for n in range(20)]
    shaken = [*steady[:-1], 50.0]
    assert estimate(shaken).value == pytest.approx(estimate(steady).value, rel=0.01)
    assert (estimate(shaken).rel_ci or 1) < 0.03


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = random.Random(7)
    covered = 0
    for _ in range(2000):
        sample = sorted(rng.expovariate(1.0) for _ in range(11))
        rank = lower_rank(11)
        assert rank is not None
        covered += sample[rank - 1] <= 0.6931 <= sample[11 - rank]
    assert 0.95 <= covered / 2000 <= 0.995


def test_stops_when_the_interval_is_narrow() -> None:
    rule = StopRule(most_rel_ci=0.03)
    assert not rule.is_enough([1.0, 1.01, 1.0, 1.0, 1.0], 1.0)
    assert rule.is_enough([1.0, 1.01, 1.0, 1.0, 1.0, 1.0], 1.0)
    assert not rule.is_enough([1.0, 1.2, 1.0, 1.0, 1.0, 1.1], 1.0)


def test_stops_when_time_or_repeats_are_spent() -> None:
    rule = StopRule(most_repeats=8, most_seconds=5.0)
    noisy = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert rule.is_enough(noisy, 1.0)
    assert rule.is_enough(noisy[:2], 5.0)
    assert not rule.is_enough([], 99.0)


def test_refuses_what_is_no_time() -> None:
    with pytest.raises(ValueError, match="above 0"):
        estimate([1.0, 0.0])
