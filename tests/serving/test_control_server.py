"""What a small HTTP server bears of those who talk to it: over sockets, byte by byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.serving import bounded_protocol
from conserve_sglang.serving.bounded_app import MAX_BODY_BYTES
from conserve_sglang.serving.bounded_protocol import MAX_CONNECTIONS, MAX_HEAD_BYTES
from conserve_sglang.serving.control_server import ControlServer
from conserve_sglang.serving.gate import Gate
from conserve_sglang.serving.listening import bound
from conserve_sglang.serving.problems import json_app

KEY = "operator"
LONG = 4.0


class Site:
    """An application on a port: it tells how long a body is, waits, fails, or tells much."""

    def __init__(self, *, is_gated: bool = False) -> None:
        self.num_read = 0
        self.go_on = asyncio.Event()
        routes = [
            Route("/length", self.length, methods=["POST"]),
            Route("/length", self.none),
            Route("/wait", self.wait),
            Route("/fail", self.fail),
            Route("/much", self.much),
        ]
        app = json_app(routes)
        sock = bound("127.0.0.1", 0, "a test's port")
        self.server = ControlServer(Gate(app, KEY) if is_gated else app, sock, None)
        self.port = self.server.port

    async def length(self, request: Request) -> Response:
        body = await request.body()
        self.num_read += len(body)
        return JSONResponse(len(body))

    async def none(self, request: Request) -> Response:
        return JSONResponse(None)

    async def wait(self, request: Request) -> Response:
        await self.go_on.wait()
        return JSONResponse("went on")

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("a fault")

    async def much(self, request: Request) -> Response:
        return Response(b"x" * 20_000_000)

    @property
    def num_open(self) -> int:
        return len(self.server._server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send, and read the answer until the connection ends."""
        reader, writer = await self.connect()
        writer.write(data)
        try:
            return parsed(await asyncio.wait_for(reader.read(), LONG))
        finally:
            writer.close()


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines), body


def a_request(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n" + "".join(f"{line}\r\n" for line in lines)
    return head.encode() + b"\r\n" + body


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(bounded_protocol, "REQUEST_S", 0.4)
    site = Site()
    yield site
    await site.server.stop()


@pytest.fixture
async def gated() -> AsyncIterator[Site]:
    site = Site(is_gated=True)
    yield site
    await site.server.stop()


CLOSE = "connection: close"


def code(body: bytes) -> str:
    told: Any = json.loads(body)["error"]
    assert told["message"]
    return str(told["code"])


async def test_body_up_to_the_limit_is_read(site: Site) -> None:
    length = f"content-length: {MAX_BODY_BYTES}"
    body = b"x" * MAX_BODY_BYTES
    status, _, told = await site.ask(a_request("POST", "/length", length, CLOSE, body=body))
    assert (status, told) == (200, str(MAX_BODY_BYTES).encode())


async def test_body_over_the_limit_is_refused_by_its_declared_length(site: Site) -> None:
    length = f"content-length: {MAX_BODY_BYTES + 1}"
    status, headers, told = await site.ask(a_request("POST", "/length", length))
    assert (status, code(told), headers["connection"]) == (413, "body_too_large", "close")


async def test_body_over_the_limit_is_refused_while_it_comes(site: Site) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    request = a_request("POST", "/length", "transfer-encoding: chunked", body=chunk * 5)
    status, headers, told = await site.ask(request)
    assert (status, code(told), headers["connection"]) == (413, "body_too_large", "close")
    assert site.num_read == 0


async def test_strangers_body_is_not_taken_in(gated: Site) -> None:
    reader, writer = await gated.connect()
    num_bytes = 200_000_000
    writer.write(a_request("POST", "/length", f"content-length: {num_bytes}"))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONG)  # before any of the body
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in head
    num_sent = 0
    try:
        while num_sent < num_bytes:
            writer.write(b"x" * 100_000)
            num_sent += 100_000
            await asyncio.wait_for(writer.drain(), LONG)
    except ConnectionError:
        pass
    assert num_sent < num_bytes / 4  # what the kernel holds, and no more
    writer.close()
    with_key = a_request("POST", "/length", f"authorization: Bearer {KEY}", "content-length: 2",
                         CLOSE, body=b"ok")  # fmt: skip
    assert (await gated.ask(with_key))[2] == b"2"


@pytest.mark.parametrize(
    "begun", [b"GET /length HTTP/1.1\r\nhost: x\r\n", b"G",
              a_request("POST", "/length", "content-length: 5", body=b"ab")]
)  # fmt: skip
async def test_request_that_does_not_end_is_given_up(site: Site, begun: bytes) -> None:
    status, _, told = await site.ask(begun)
    assert (status, code(told)) == (408, "request_too_slow")


async def test_trickling_gains_no_time(site: Site) -> None:
    reader, writer = await site.connect()
    answer = asyncio.ensure_future(reader.read())
    began = asyncio.get_running_loop().time()
    for byte in a_request("GET", "/length", *("a: b",) * 100):
        if answer.done() or reader.at_eof():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)
    assert parsed(await asyncio.wait_for(answer, LONG))[0] == 408
    assert asyncio.get_running_loop().time() - began < 2.0
    writer.close()


async def test_silent_connection_is_closed(site: Site) -> None:
    reader, writer = await site.connect()
    assert await asyncio.wait_for(reader.read(), LONG) == b""
    writer.close()
    await until(lambda: site.num_open == 0)


async def test_many_stalled_connections_lock_nobody_out(gated: Site) -> None:
    stalled = [await gated.connect() for _ in range(300)]
    for _, writer in stalled:
        writer.write(b"GET /length HTTP/1.1\r\nhost:")
    for _ in range(3):
        known = a_request("GET", "/length", f"authorization: Bearer {KEY}", CLOSE)
        assert (await gated.ask(known))[0] == 200
    assert gated.num_open <= MAX_CONNECTIONS
    for _, writer in stalled:
        writer.close()


async def test_connections_that_are_served_keep_their_place(site: Site) -> None:
    served = [await site.connect() for _ in range(MAX_CONNECTIONS)]
    for _, writer in served:
        writer.write(a_request("GET", "/wait", CLOSE))
    await until(lambda: len(site.server._server.server_state.tasks) == MAX_CONNECTIONS)
    status, _, told = await site.ask(a_request("GET", "/length"))
    assert (status, code(told)) == (503, "too_many_connections")
    site.go_on.set()
    for reader, writer in served:
        assert parsed(await asyncio.wait_for(reader.read(), LONG))[0] == 200
        writer.close()
    assert (await site.ask(a_request("GET", "/length", CLOSE)))[0] == 200


async def test_client_that_does_not_read_is_let_go(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_protocol, "STUCK_S", 0.3)
    stuck = socket.create_connection(("127.0.0.1", site.port))
    stuck.sendall(a_request("GET", "/much"))
    await until(lambda: site.num_open == 1)
    await until(lambda: site.num_open == 0)
    stuck.close()


async def test_slow_reader_gets_everything(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(a_request("GET", "/much", CLOSE))
    await asyncio.sleep(0.5)
    assert len(parsed(await asyncio.wait_for(reader.read(), LONG))[2]) == 20_000_000
    writer.close()


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (a_request("GET", "/nothing", CLOSE), 404, "unknown_path"),
        (a_request("DELETE", "/length", CLOSE), 405, "method_not_allowed"),
        (a_request("GET", "/fail", CLOSE), 500, "internal_error"),
        (
            a_request("GET", "/length", "a: " + "b" * 2 * MAX_HEAD_BYTES)[:-4],
            431,
            "headers_too_large",
        ),
        (b"what is this\r\n\r\n", 400, "bad_request"),
        (a_request("GET", "/length", "content-length: 1", "content-length: 2"), 400, "bad_request"),
    ],
)
async def test_every_error_is_json(site: Site, request_: bytes, status: int, told: str) -> None:
    got, headers, body = await site.ask(request_)
    assert (got, headers["content-type"], code(body)) == (status, "application/json", told)
    if status == 405:
        assert headers["allow"] == "GET, HEAD, POST"


async def test_connections_are_kept_alive_between_requests(site: Site) -> None:
    reader, writer = await site.connect()
    for _ in range(3):
        writer.write(a_request("POST", "/length", "content-length: 2", body=b"ok"))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n2"), LONG)
        await asyncio.sleep(0.25)  # together more than one request may take
    writer.close()


async def until(is_so: Any) -> None:
    for _ in range(800):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not happen in time")
