"""Percentiles and means against known answers."""

import pytest

from conserve_sglang.core.stats import geometric_mean, percentile


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 1.0), (26, 2.0), (50, 2.0), (95, 4.0), (100, 4.0)]
)
def test_nearest_rank(percent: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == value


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)


def test_no_values_and_bad_percent_are_errors() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match=r"0\.\.100"):
        percentile([1.0], 101)
    with pytest.raises(ValueError, match="positive"):
        geometric_mean([0.0, 1.0])
