"""Lines of a phase log, there and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.phase_log import (
    Batch,
    Launched,
    Opened,
    Phase,
    Work,
    decode_line,
    encode_decode,
    encode_extend,
    encode_launched,
    encode_opened,
    encode_work,
)

WORKS = st.lists(
    st.tuples(
        st.none()
        | st.tuples(st.from_regex(r"conv-[0-9a-f]{1,32}", fullmatch=True), st.integers(1, 99)),
        st.sampled_from(Phase),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
    ),
    max_size=5,
)
TIMES = st.integers(0, 10**15).map(lambda us: us / 1e6)


@settings(deadline=None)
@given(TIMES, TIMES, st.integers(1, 1000), WORKS)
def test_batches_are_read_as_they_were_written(
    start_s: float,
    end_s: float,
    steps: int,
    works: list[tuple[tuple[str, int] | None, Phase, int, int]],
) -> None:
    rows = [encode_work(*work) for work in works]
    expected = tuple(
        Work(None if tag is None else tag[0], 0 if tag is None else tag[1], phase, new, held)
        for tag, phase, new, held in works
    )
    decoded = decode_line(encode_decode(start_s, end_s, steps, rows))
    assert decoded == Batch(start_s, end_s, steps, expected)
    assert decode_line(encode_extend(start_s, end_s, rows)) == Batch(start_s, end_s, 1, expected)


def test_other_lines_are_read_as_they_were_written() -> None:
    assert decode_line(encode_launched(12.25)) == Launched(12.25)
    assert decode_line(encode_opened(77, 1.5, 2)) == Opened(77, 1.5, 2)


def test_line_of_a_kind_to_come_is_passed_over() -> None:
    assert decode_line(b'["z",1,2,3]\n') is None


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b'["x",1]', b'["x",1,2,[["c"]]]', b'["d",1,2,3,[["c",1,"q",1,1]]]']
)
def test_damaged_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_line(line)


def test_log_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 9"):
        decode_line(b'["o",9,1,2,3]\n')
