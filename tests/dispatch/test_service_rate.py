import pytest

from conserve_sglang.dispatch.service_rate import MAX_RETRY_S, MIN_RETRY_S, ServiceRate


def a_rate(gap_s: float, num_served: int = 40) -> tuple[ServiceRate, float]:
    rate, now = ServiceRate(), 100.0
    rate.begins(now)
    for _ in range(num_served):
        now += gap_s
        rate.served(now)
    return rate, now


def test_retry_after_is_the_queue_before_a_turn_at_the_observed_rate() -> None:
    rate, now = a_rate(0.5)
    assert rate.retry_after_s(40, now) == pytest.approx(20.0)
    assert rate.retry_after_s(10, now) == pytest.approx(5.0)


def test_retry_after_is_bounded() -> None:
    rate, now = a_rate(0.5)
    assert rate.retry_after_s(0, now) == MIN_RETRY_S
    assert rate.retry_after_s(10_000, now) == MAX_RETRY_S
    assert ServiceRate().retry_after_s(10, 0.0) == MIN_RETRY_S


def test_a_queue_that_stands_still_is_not_promised_soon() -> None:
    rate, now = a_rate(0.1)
    assert rate.retry_after_s(10, now + 30.0) == pytest.approx(31.0, abs=0.2)


def test_time_in_which_nobody_waited_is_not_counted() -> None:
    rate, now = a_rate(0.5)
    rate.begins(now + 1000.0)
    rate.served(now + 1000.5)
    assert rate.retry_after_s(10, now + 1000.5) == pytest.approx(5.0)


def test_the_rate_follows_a_change() -> None:
    rate, now = a_rate(0.1)
    for _ in range(100):
        now += 2.0
        rate.served(now)
    assert rate.retry_after_s(10, now) == pytest.approx(20.0, rel=0.05)
