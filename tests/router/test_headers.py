"""Which headers cross the router, and when two requests' are the same but for the router's own."""

from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.router.headers import ours_if_no_other_differs, split_request_headers

NAMES = (
    b"accept", b"authorization", b"x-conversation-id", b"session-id", b"x-conversation-end",
    b"x-conserve-deadline-ms", b"x-api-key", b"connection", b"x-trace",
)  # fmt: skip
headers = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([b"a", b"b", b"x-trace"])), max_size=6
)


@given(headers, headers, st.frozensets(st.sampled_from(NAMES)))
def test_what_goes_on_is_the_same_where_only_ours_differ(
    first: list[tuple[bytes, bytes]], second: list[tuple[bytes, bytes]], stopped: frozenset[bytes]
) -> None:
    for later in (second, [(name, b"z") for name, _ in first]):
        ours = ours_if_no_other_differs(later, first)
        if ours is not None:
            forward, _ = split_request_headers(first, stopped)
            assert split_request_headers(later, stopped) == (forward, ours)


def test_another_key_or_name_of_a_header_is_a_difference() -> None:
    last = [(b"authorization", b"Bearer a"), (b"x-conversation-id", b"1")]
    assert ours_if_no_other_differs([last[0], (b"x-conversation-id", b"2")], last) == {
        b"x-conversation-id": b"2"
    }
    assert ours_if_no_other_differs([(b"authorization", b"Bearer b"), last[1]], last) is None
    assert ours_if_no_other_differs([last[0], (b"session-id", b"1")], last) is None
    assert ours_if_no_other_differs([last[0]], last) is None
