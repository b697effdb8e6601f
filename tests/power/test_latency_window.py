"""The percentile the power controller is told: exact, unbounded, of what came after a move."""

import pytest

from conserve_sglang.power.latency_window import recent_latency

NEVER = float("-inf")


@pytest.mark.parametrize("seconds", [0.076, 5.1, 1000.0])
def test_a_latency_reads_as_it_was(seconds: float) -> None:
    samples = [(0.0, 1.0, seconds)] * 100
    found = recent_latency(samples, 2.0, moved_at_s=NEVER, window_s=30.0)
    assert found is not None
    assert (found.p95_s, found.num_samples) == (seconds, 100)


def test_the_95th_of_a_hundred_is_told() -> None:
    samples = [(0.0, 1.0, float(number)) for number in range(1, 101)]
    found = recent_latency(samples, 2.0, moved_at_s=NEVER, window_s=30.0)
    assert found is not None
    assert found.p95_s == 95.0


def test_what_is_older_than_the_window_is_forgotten() -> None:
    samples = [(0.0, 1.0, 9.0), (0.0, 40.0, 1.0)]
    found = recent_latency(samples, 41.0, moved_at_s=NEVER, window_s=30.0)
    assert found is not None
    assert (found.p95_s, found.num_samples, found.since_s) == (1.0, 1, 11.0)
    assert recent_latency(samples, 75.0, moved_at_s=NEVER, window_s=30.0) is None
    assert recent_latency([], 75.0, moved_at_s=NEVER, window_s=30.0) is None


def test_turns_on_their_way_at_a_move_do_not_count() -> None:
    samples = [(9.0, 9.5, 3.0), (9.0, 12.0, 2.0), (10.5, 11.0, 1.0), (9.0, 39.0, 2.5)]
    found = recent_latency(samples, 39.5, moved_at_s=10.0, window_s=30.0)
    assert found is not None
    assert (found.p95_s, found.num_samples, found.since_s) == (1.0, 1, 10.0)
