"""What could make two readers of one byte stream disagree is refused, whole or byte by byte."""

import pytest

from conserve_sglang.router.request_reader import MAX_HEADERS, RequestReader
from tests.fakes.router_cluster import Cluster

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
REFUSED = {
    "length twice": POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 5\r\n\r\n{}abc",
    "list of lengths": POST + b"content-length: 2, 2\r\n\r\n{}",
    "signed length": POST + b"content-length: +2\r\n\r\n{}",
    "negative length": POST + b"content-length: -1\r\n\r\n{}",
    "hexadecimal length": POST + b"content-length: 0x2\r\n\r\n{}",
    "length past 64 bits": POST + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "length in two parts": POST + b"content-length: 2 2\r\n\r\n{}",
    "empty length": POST + b"content-length: \r\n\r\n",
    "length, then chunks": POST
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks, then length": POST
    + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "chunked twice": POST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"transfer-encoding: identity\r\n\r\n",
    "zipped chunks": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks not last": POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "almost chunked": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked behind a control byte": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"content-length : 2\r\n\r\n{}",
    "folded header": POST + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
    "bare line feeds": b"POST / HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}",
    "carriage return in a value": POST + b"x: a\rb\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a value": POST + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "header without a name": POST + b": x\r\ncontent-length: 2\r\n\r\n{}",
    "no host": b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
    "two hosts": POST + b"host: y\r\ncontent-length: 2\r\n\r\n{}",
    "chunk size and a bare line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    "chunk size past 64 bits": CHUNKED + b"ffffffffffffffffff\r\n{}",
    "length among the trailers": CHUNKED + b"2\r\n{}\r\n0\r\ncontent-length: 5\r\n\r\n",
    "headers without end": POST + b"a: b\r\n" * MAX_HEADERS + b"content-length: 2\r\n\r\n{}",
    "chunk extensions without end": CHUNKED + b"2;" + b"a" * 100_000,
    "trailers without end": CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 20_000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nhost: x\r\n\r\n",
    "tunnel": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "other protocol with two framings": POST
    + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n"
    + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}


def read(data: bytes, step: int) -> RequestReader:
    reader = RequestReader(1_000_000)
    for at in range(0, len(data), step):
        if reader.refusal is None:
            reader.feed(data[at : at + step])
    return reader


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_framing_is_refused(case: str, step: int) -> None:
    reader = read(REFUSED[case], step)
    assert reader.refusal is not None
    assert reader.refusal.status in (400, 413, 431, 501)
    assert not reader.ready


@pytest.mark.parametrize("step", [1, 4096])
def test_trailers_and_extensions_are_read_and_forgotten(step: int) -> None:
    data = CHUNKED + b"2;name=value\r\n{}\r\n0\r\nx-conversation-id: other\r\n\r\n"
    (request,) = read(data, step).ready
    assert request.body == b"{}"
    assert b"x-conversation-id" not in dict(request.headers)


def test_body_of_tiny_chunks_is_read() -> None:
    body = b"{" + b" " * 50_000 + b"}"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    (request,) = read(CHUNKED + chunks + b"0\r\n\r\n", 997).ready
    assert request.body == body


@pytest.mark.parametrize("case", ["length, then chunks", "two lengths", "no host"])
async def test_nothing_behind_a_refused_request_is_served(cluster: Cluster, case: str) -> None:
    client = await cluster.connect()
    client.send(REFUSED[case] + POST + b"content-length: 15\r\n\r\n" + b'{"messages":[]}')
    answer = await client.answer()
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert not cluster["d0"].turns
    assert not cluster["d1"].turns
    assert (await cluster.chat("still there?")).status == 200


def test_heads_that_come_by_turns_are_each_parsed_once() -> None:
    reader = RequestReader(1000)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nx-conversation-id: %b\r\ncontent-length: %d\r\n\r\n"
    for number in range(4):
        for target in (b"/v1/place", b"/v1/place/report"):
            name, body = b"task-%d" % number, b"b" * (number + 1)
            reader.feed(head % (target, name, len(body)) + body)
            request = reader.ready.popleft()
            assert (request.target, request.body) == (target, body)
            assert (b"x-conversation-id", name) in request.headers
        reader._parser = None  # nothing is left to parse
