"""The beginning of a run is left out as far as it differs, and no further."""

import random

import pytest

from conserve_sglang.profiler.steady import steady_from, typical


def test_a_slow_start_is_cut() -> None:
    rng = random.Random(3)
    steady = [10.0 + rng.uniform(-0.2, 0.2) for _ in range(100)]
    start = [40.0, 35.0, 30.0, 25.0, 22.0, 20.0, 18.0, 16.0, 14.0, 12.0]
    cut = steady_from(start + steady)
    assert 10 <= cut <= 30


def test_a_steady_series_is_hardly_cut() -> None:
    assert steady_from([1.0] * 60) == 0


def test_never_more_than_half_is_cut() -> None:
    assert steady_from([float(n) for n in range(100)]) <= 50


def test_too_short_to_tell() -> None:
    assert steady_from([9.0, 1.0, 1.0]) == 0


def test_tokens_that_came_in_one_piece_do_not_matter() -> None:
    assert typical([0.0, 0.02] * 40) == pytest.approx(0.01)


def test_a_stutter_does_not_matter() -> None:
    assert typical([0.01] * 40 + [3.0] + [0.01] * 40) == pytest.approx(0.01)


def test_nothing_has_no_typical_value() -> None:
    with pytest.raises(ValueError, match="no values"):
        typical([])
