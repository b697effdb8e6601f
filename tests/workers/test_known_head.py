from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conserve_sglang.workers.known_head import Headers, KnownHead, known_head

VARYING = frozenset({b"x-conversation-id", b"date"})
BODY = b'{"a":1}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Conversation-Id: task-1\r\n"
    b"accept: */*\r\ncontent-length: 7\r\nuser-agent: a b\r\n\r\n"
)


class _Read:
    """What httptools makes of it, trailing bytes and all; None where it refuses."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.body = b""
        self.num_messages = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.num_messages += 1


def read(data: bytes) -> _Read | None:
    found = _Read()
    parser: Any = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return found


def known(data: bytes = HEAD + BODY) -> KnownHead | None:
    found = read(data)
    assert found is not None
    return known_head(data, found.headers, VARYING)


def known_well() -> KnownHead:
    found = known()
    assert found is not None
    return found


def test_a_head_that_comes_again_is_known_with_its_headers_and_length() -> None:
    head = known_well()
    assert head.match(HEAD + BODY) == len(HEAD)
    assert head.length == 7
    before = head.headers
    other = HEAD.replace(b"task-1", b"another task").replace(b": 7", b": 4711")
    assert head.match(other + BODY) == len(other)
    assert head.length == 4711
    assert (b"x-conversation-id", b"another task") in head.headers
    assert (b"x-conversation-id", b"task-1") in before
    assert head.match(HEAD + BODY) == len(HEAD)
    assert head.headers == before


@pytest.mark.parametrize(
    "other",
    [
        HEAD.replace(b"host", b"most").replace(b"Host", b"Most"),
        HEAD.replace(b"accept: */*", b"accept: a/b"),
        HEAD.replace(b": 7", b": 7x"),
        HEAD.replace(b": 7", b": +7"),
        HEAD.replace(b": 7", b": "),
        HEAD.replace(b": 7", b": 7 "),
        HEAD.replace(b": 7", b": " + b"1" * 30),
        HEAD.replace(b"task-1", b"task\t1"),
        HEAD.replace(b"task-1", b"task\n1"),
        HEAD.replace(b"task-1", b"task\r\n 1"),
        HEAD.replace(b"task-1", b"t\x00"),
        HEAD.replace(b"task-1", b"\xff"),
        HEAD.replace(b"task-1", b" task-1"),
        HEAD.replace(b"task-1", b""),
        HEAD.replace(b"task-1", b"x" * 5000),
        HEAD.replace(b"task-1", b"1\r\ntransfer-encoding: chunked"),
        HEAD.replace(b"\r\n\r\n", b"\r\nx: y\r\n\r\n"),
        HEAD.replace(b"\r\n\r\n", b"\n\n"),
        HEAD[:-2],
        HEAD[:40],
        b"",
    ],
)
def test_what_is_not_quite_the_head_is_left_to_the_parser(other: bytes) -> None:
    assert known_well().match(other) == -1


@pytest.mark.parametrize(
    "data",
    [
        HEAD + BODY[:-1],  # not whole
        HEAD + BODY + HEAD + BODY,
        HEAD.replace(b"accept: */*", b"date: a\r\ndate: b") + BODY,
        HEAD.replace(b"task-1", b"task-1 ") + BODY,
        HEAD.replace(b"task-1", b"") + BODY,
        HEAD.replace(b"task-1", b"t\t1") + BODY,
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        HEAD.replace(b"content-length: 7", b"transfer-encoding: chunked") + b"0\r\n\r\n",
    ],
)
def test_an_unusual_head_is_not_learned(data: bytes) -> None:
    assert known(data) is None


_PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"7", b"0", b"content-length: 7"]),
)


@given(
    at=st.integers(0, len(HEAD)),
    cut=st.integers(0, 6),
    piece=_PIECES,
    name=st.binary(min_size=1, max_size=12),
    length=st.integers(0, 12),
)
@example(at=0, cut=0, piece=b"", name=b"plain", length=7)
def test_whatever_is_known_httptools_reads_the_same(
    at: int, cut: int, piece: bytes, name: bytes, length: int
) -> None:
    head = known_well()
    other = HEAD.replace(b"task-1", name).replace(b"length: 7", b"length: %d" % length)
    other = other[:at] + piece + other[at + cut :] + BODY
    begin = head.match(other)
    if begin < 0 or len(other) - begin != head.length:
        return  # left to httptools
    found = read(other)
    assert found is not None
    assert found.num_messages == 1
    assert found.body == other[begin:]
    assert found.headers == head.headers
