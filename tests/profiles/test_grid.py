"""Between points a straight line, beyond them a refusal."""

import pytest

from conserve_sglang.profiles.grid import Coordinates, Outside, grid_of, leave_one_out

# The row at 2 is shorter than the row at 1.
RAGGED: dict[Coordinates, float] = {
    (1.0, 10.0): 1.0,
    (1.0, 20.0): 2.0,
    (1.0, 40.0): 4.0,
    (2.0, 10.0): 10.0,
    (2.0, 20.0): 20.0,
}


@pytest.mark.parametrize(
    ("place", "value"),
    [((1.0, 10.0), 1.0), ((1.0, 30.0), 3.0), ((1.5, 10.0), 5.5), ((1.5, 15.0), 8.25)],
)
def test_values_between_points_lie_on_straight_lines(place: Coordinates, value: float) -> None:
    row = grid_of(RAGGED.items())
    assert row is not None
    assert row.at(place) == pytest.approx(value)


@pytest.mark.parametrize(
    ("place", "axis", "most"),
    [((3.0, 10.0), 0, 2.0), ((1.0, 41.0), 1, 40.0), ((1.5, 30.0), 1, 20.0), ((0.5, 10.0), 0, 2.0)],
)
def test_beyond_the_points_nothing_is_made_up(place: Coordinates, axis: int, most: float) -> None:
    row = grid_of(RAGGED.items())
    assert row is not None
    with pytest.raises(Outside) as caught:
        row.at(place)
    assert (caught.value.axis, caught.value.most) == (axis, most)


def test_asked_to_extrapolate_it_continues_the_last_line() -> None:
    row = grid_of(RAGGED.items())
    assert row is not None
    assert row.at((1.0, 60.0), extrapolate=True) == pytest.approx(6.0)
    assert row.at((3.0, 10.0), extrapolate=True) == pytest.approx(19.0)
    single = grid_of([((1.0,), 7.0)])
    assert single is not None
    assert single.at((5.0,), extrapolate=True) == 7.0


def test_leaving_points_out_tells_the_error_and_counts_the_edge() -> None:
    points: dict[Coordinates, float] = {(float(x),): float(x * x) for x in (1, 2, 3, 4)}
    report = leave_one_out(points)
    # 2 from 1 and 9: 5 instead of 4; 3 from 4 and 16: 10 instead of 9.
    assert (report.num_points, report.num_edge) == (4, 2)
    assert report.worst_error == pytest.approx(0.25)
    assert report.worst_at == (2.0,)
    assert report.median_error == pytest.approx(1 / 9)


def test_points_of_a_plane_are_told_without_error() -> None:
    places: list[Coordinates] = [(float(x), float(y)) for x in range(4) for y in range(4)]
    points = {place: 1.0 + 2 * place[0] + 3 * place[1] for place in places}
    report = leave_one_out(points)
    assert report.worst_error == pytest.approx(0.0, abs=1e-12)
    assert report.num_edge == 8  # the ends of the four rows
