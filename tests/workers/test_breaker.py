"""The circuit breaker opens on failures, cools down longer each time, and closes by trial turns."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.health import BreakerSettings
from conserve_sglang.workers.breaker import BreakerState, CircuitBreaker

SETTINGS = BreakerSettings(
    consecutive_failures=3,
    failure_ratio=0.5,
    min_turns=8,
    window_s=10.0,
    cooldown_s=1.0,
    max_cooldown_s=8.0,
    trial_turns=2,
)


def a_breaker(settings: BreakerSettings = SETTINGS, seed: int = 1) -> CircuitBreaker:
    return CircuitBreaker(settings, random.Random(seed))


def opened(breaker: CircuitBreaker, now: float) -> CircuitBreaker:
    for _ in range(SETTINGS.consecutive_failures):
        breaker.failed(now, "500")
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_say_why() -> None:
    breaker = a_breaker()
    assert not breaker.failed(0.0, "500")
    assert not breaker.failed(0.1, "500")
    assert breaker.failed(0.2, "broken pipe")
    assert breaker.state is BreakerState.OPEN
    assert breaker.reason == "3 turns in a row failed, the last: broken pipe"
    assert not breaker.failed(0.3, "a turn of before")


def test_an_answer_between_failures_keeps_it_closed() -> None:
    breaker = a_breaker()
    for _ in range(2):
        breaker.failed(0.0, "500")
        breaker.failed(0.0, "500")
        breaker.answered()
    assert breaker.state is BreakerState.CLOSED


def test_half_of_enough_turns_failing_opens_it() -> None:
    breaker = a_breaker()
    for turn in range(8):
        if turn % 2 == 0:
            breaker.answered()
        elif breaker.failed(turn / 10, "500"):
            break
    assert breaker.reason == "4 of 8 turns failed in 10 s, the last: 500"


def test_failures_outside_the_window_are_forgotten() -> None:
    breaker = a_breaker()
    for turn in range(40):
        breaker.answered()
        breaker.failed(turn * 11.0, "500")
    assert breaker.state is BreakerState.CLOSED


def test_many_answers_outweigh_some_failures() -> None:
    breaker = a_breaker()
    for turn in range(100):
        for _ in range(3):
            breaker.answered()
        assert not breaker.failed(turn / 20, "500")


def test_enough_trial_turns_close_it() -> None:
    breaker = opened(a_breaker(), 0.0)
    assert not breaker.may_probe(0.4)
    assert breaker.may_probe(1.0)
    breaker.half_open()
    assert not breaker.answered()
    assert breaker.answered()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.reason == ""


def test_a_failed_trial_opens_it_for_longer() -> None:
    breaker = opened(a_breaker(), 0.0)
    waits = []
    now = 0.0
    for _ in range(6):
        waits.append(breaker.until_s - now)
        now = breaker.until_s
        breaker.half_open()
        assert breaker.failed(now, "500")
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest


def test_a_long_time_closed_makes_the_next_cool_down_short_again() -> None:
    breaker = opened(a_breaker(), 0.0)
    breaker.half_open()
    breaker.failed(1.0, "500")
    breaker.half_open()
    breaker.answered()
    breaker.answered()
    breaker.pass_time(3.0)
    breaker.pass_time(3.0 + SETTINGS.max_cooldown_s)
    opened(breaker, 20.0)
    assert breaker.until_s <= 21.0


def test_cool_downs_of_several_routers_differ() -> None:
    ends = {opened(a_breaker(seed=seed), 0.0).until_s for seed in range(20)}
    assert len(ends) == 20


events = st.lists(
    st.tuples(st.sampled_from(["answered", "failed", "probe"]), st.floats(0.0, 3.0)), max_size=200
)


@given(script=events, seed=st.integers(0, 99))
def test_promises_hold_over_random_events(script: list[tuple[str, float]], seed: int) -> None:
    breaker = a_breaker(seed=seed)
    now, in_a_row, trials = 0.0, 0, 0
    for what, passed_s in script:
        now += passed_s
        before = breaker.state
        if what == "answered":
            closed = breaker.answered()
            in_a_row = 0
            trials += before is BreakerState.HALF_OPEN
            assert closed == (before is BreakerState.HALF_OPEN and trials == SETTINGS.trial_turns)
            assert before is not BreakerState.OPEN or breaker.state is BreakerState.OPEN
        elif what == "failed":
            did_open = breaker.failed(now, "500")
            in_a_row += before is not BreakerState.OPEN
            assert not did_open or breaker.state is BreakerState.OPEN
            assert did_open or before is not BreakerState.HALF_OPEN, "a trial failed unpunished"
            assert did_open or in_a_row < SETTINGS.consecutive_failures or before.value == "open"
            if did_open:
                assert SETTINGS.cooldown_s / 2 <= breaker.until_s - now <= SETTINGS.max_cooldown_s
                in_a_row = 0
        else:
            breaker.pass_time(now)
            if breaker.may_probe(now):
                assert now >= breaker.until_s
                breaker.half_open()
                in_a_row = trials = 0
        assert (breaker.reason == "") == (breaker.state is BreakerState.CLOSED)
        assert len(breaker._slices) <= 12


@pytest.mark.parametrize("failures", range(1, 30))
def test_never_opens_on_fewer_failures_than_it_takes(failures: int) -> None:
    breaker = a_breaker(BreakerSettings(consecutive_failures=failures, min_turns=10_000))
    results = [breaker.failed(0.0, "500") for _ in range(failures)]
    assert results == [False] * (failures - 1) + [True]
