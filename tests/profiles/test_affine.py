"""The nearest affine function of two coordinates."""

import pytest

from conserve_sglang.profiles.affine import Sample, fit_affine

GRID = [(float(x), float(y)) for x in (1, 4, 16, 64) for y in (100, 5000, 90_000)]


def samples_of(base: float, first: float, second: float) -> list[Sample]:
    return [(x, y, base + first * x + second * y) for x, y in GRID]


def test_a_plane_comes_back() -> None:
    fit = fit_affine(samples_of(12e-3, 24e-6, 0.138e-6))
    assert (fit.base, fit.first, fit.second) == pytest.approx((12e-3, 24e-6, 0.138e-6))
    assert fit.worst_error == pytest.approx(0, abs=1e-9)
    assert fit.at(2, 10) == pytest.approx(12e-3 + 48e-6 + 1.38e-6)


def test_no_term_is_below_zero_and_the_error_is_told() -> None:
    fit = fit_affine(samples_of(12e-3, -24e-6, 0.138e-6))
    assert fit.first == 0
    assert fit.worst_error > fit.median_error > 0
    worst = max(abs(fit.at(x, y) / v - 1) for x, y, v in samples_of(12e-3, -24e-6, 0.138e-6))
    assert fit.worst_error == pytest.approx(worst)


def test_what_the_points_do_not_tell_is_left_out() -> None:
    fit = fit_affine([(1.0, 10.0, 2.0), (1.0, 20.0, 3.0)])
    assert fit.at(1, 15) == pytest.approx(2.5)
    assert fit_affine([(1.0, 10.0, 2.0)]).at(1, 10) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="needs points"):
        fit_affine([])
