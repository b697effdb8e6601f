"""Letters of points cover neither points, nor lines, nor each other."""

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.report.tags import Tag, tags

WIDTH, HEIGHT = 400.0, 200.0
ACROSS, DOWN = st.integers(2, 18), st.integers(1, 6)
PLACES = st.lists(
    st.tuples(ACROSS.map(lambda n: n * 20.0), DOWN.map(lambda n: n * 30.0)),
    min_size=1, max_size=8, unique=True,
)  # fmt: skip


@given(PLACES)
def test_letters_of_points_that_lie_apart_cover_nothing(places: list[tuple[float, float]]) -> None:
    found = tags([(place, 4.5, chr(65 + n)) for n, place in enumerate(places)], [], WIDTH, HEIGHT)
    assert len(found) == len(places)
    for number, tag in enumerate(found):
        assert not any(tag.covers(place) for place in places)
        assert not any(tag.crosses(other) for other in found[number + 1 :])
        assert 0 < tag.x < WIDTH
        assert 0 < tag.y <= HEIGHT


def test_points_that_touch_share_their_letters() -> None:
    (tag,) = tags([((100, 100), 4.5, "B"), ((104, 101), 7, "A")], [], WIDTH, HEIGHT)
    assert tag.words == "A, B"


def test_a_letter_gives_way_to_a_line() -> None:
    line = [(100.0, 100.0), (200.0, 100.0)]
    (free,) = tags([((100, 100), 4.5, "A")], [], WIDTH, HEIGHT)
    (tag,) = tags([((100, 100), 4.5, "A")], [line], WIDTH, HEIGHT)
    assert free.covers((110, 100))
    assert not any(tag.covers((100 + step, 100)) for step in range(100))


def test_a_point_without_words_has_none_but_is_not_covered() -> None:
    (tag,) = tags([((100, 100), 4.5, "A"), ((112, 100), 4.5, "")], [], WIDTH, HEIGHT)
    assert isinstance(tag, Tag)
    assert not tag.covers((112, 100))
