import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conserve_sglang.core.errors import TimedOut, Unreachable
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Script:
    """A server that answers the n-th request with the n-th reply and counts connections."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.num_connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                reply = self.replies.pop(0)
                writer.write(reply)
                await writer.drain()
                if not reply or b"close" in reply or b"length" not in reply:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def pool_to(script: Script) -> AsyncIterator[ConnectionPool]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    pool = ConnectionPool("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        await asyncio.sleep(0.01)


async def test_connection_is_used_again() -> None:
    script = Script(OK, OK, OK)
    async with pool_to(script) as pool:
        for _ in range(3):
            assert await fetch(pool, "GET", "/") == (200, b"ok")
        assert script.num_connections == 1


async def test_connection_that_is_to_close_is_not_used_again() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    script = Script(closing, OK)
    async with pool_to(script) as pool:
        await fetch(pool, "GET", "/")
        await fetch(pool, "GET", "/")
        assert script.num_connections == 2


async def test_stale_connection_is_retried_on_a_new_one() -> None:
    script = Script(OK, b"", OK)
    async with pool_to(script) as pool:
        await fetch(pool, "GET", "/")
        assert await fetch(pool, "GET", "/") == (200, b"ok")
        assert script.num_connections == 2


async def test_new_connection_that_breaks_is_not_retried() -> None:
    script = Script(b"", OK)
    async with pool_to(script) as pool:
        with pytest.raises(Unreachable):
            await fetch(pool, "GET", "/")
        assert len(script.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\nx: ",
        b"nonsense and close",
    ],
)
async def test_half_an_answer_is_none(broken: bytes) -> None:
    async with pool_to(Script(broken)) as pool:
        with pytest.raises(Unreachable):
            await fetch(pool, "GET", "/")


async def test_answer_may_end_with_the_connection() -> None:
    async with pool_to(Script(b"HTTP/1.0 200 OK\r\nx: close\r\n\r\nall of it")) as pool:
        assert await fetch(pool, "GET", "/") == (200, b"all of it")


async def test_interim_answers_are_skipped() -> None:
    async with pool_to(Script(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK)) as pool:
        assert await fetch(pool, "GET", "/") == (200, b"ok")


async def test_refused_connection_is_reported() -> None:
    refused: list[bool] = []
    pool = ConnectionPool("127.0.0.1", 1, on_refused=lambda: refused.append(True))
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        await fetch(pool, "GET", "/")
    assert refused


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EADDRNOTAVAIL, "no port"),
     TimeoutError()],
)  # fmt: skip
async def test_own_trouble_is_not_a_refusal(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def connect(*args: object) -> None:
        raise error

    refused: list[bool] = []
    pool = ConnectionPool("127.0.0.1", 1, on_refused=lambda: refused.append(True))
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    with pytest.raises((Unreachable, TimedOut)):
        await fetch(pool, "GET", "/")
    assert not refused


async def test_silent_server_times_out_and_its_connection_is_dropped() -> None:
    async with pool_to(Script(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) as pool:
        with pytest.raises(TimedOut):
            await fetch(pool, "GET", "/", timeout_s=0.05)
        await asyncio.sleep(0.01)
        assert pool.num_connections == 0


async def test_bytes_nobody_asked_for_end_the_connection() -> None:
    async with pool_to(Script(OK + OK, OK)) as pool:
        await fetch(pool, "GET", "/")
        await asyncio.sleep(0.01)
        assert await fetch(pool, "GET", "/") == (200, b"ok")


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux has it")
async def test_pieces_of_a_stream_that_is_followed_are_not_acknowledged_one_by_one() -> None:
    async with pool_to(Script()) as pool:
        connection = await pool.connect()
        bound = connection._transport.get_extra_info("socket")
        assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
        connection.follow_stream()
        assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0


async def test_connection_that_is_closed_as_soon_as_it_is_made_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pool_to(Script()) as pool:
        loop = asyncio.get_running_loop()
        connect: Any = loop.create_connection

        async def closing(*args: Any, **options: Any) -> Any:
            transport, protocol = await connect(*args, **options)
            transport.abort()
            await asyncio.sleep(0.01)  # it has been lost by now
            return transport, protocol

        monkeypatch.setattr(loop, "create_connection", closing)
        with pytest.raises(Unreachable, match="as soon as it was made"):
            await fetch(pool, "GET", "/", timeout_s=5)
        assert pool.num_connections == 0


async def test_what_nobody_foresaw_is_told_to_whoever_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pool_to(Script()) as pool:

        async def fail(*args: object, **options: object) -> None:
            raise KeyError("unforeseen")

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
        with pytest.raises(Unreachable, match="unforeseen"):
            await fetch(pool, "GET", "/", timeout_s=5)
