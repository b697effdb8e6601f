"""TLS connections count from their acceptance on, whatever becomes of their handshakes."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conserve_sglang.core.tier import Overload
from conserve_sglang.router.tls_listener import MAX_TURNED_AWAY, TURNED_AWAY_TIMEOUT_S
from tests.fakes.certificates import Authority
from tests.fakes.router_cluster import Client, Cluster, a_cluster
from tests.fakes.router_process import a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

BOUND = 4


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def small(authority: Authority) -> AsyncIterator[Cluster]:
    """A router with TLS and room for few connections."""
    overload = Overload(max_connections=BOUND)
    async with a_cluster(tls=authority.issue(), overload=overload) as cluster:
        cluster.tls = authority.client()
        yield cluster


@contextmanager
def silent(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Connections that never say a word."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            for _ in range(number)
        ]


async def test_silent_connections_take_the_room_and_give_it_back(small: Cluster) -> None:
    door = small.service.door
    with silent(small.service.port, BOUND):
        await small.until(lambda: door.num_clients == BOUND)
        refused = await small.request("GET", "/health")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert door.num_clients == BOUND
    await small.until(lambda: door.num_clients == 0)
    assert (await small.chat("hello")).status == 200


async def test_connection_is_counted_once(small: Cluster) -> None:
    clients = [await small.connect() for _ in range(BOUND)]
    assert small.service.door.num_clients == BOUND
    for client in clients:
        client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer()).status == 200
    clients[0].close()
    await small.until(lambda: small.service.door.num_clients == BOUND - 1)
    assert (await small.request("GET", "/health")).status == 200


async def test_handshake_that_fails_is_not_counted_any_more(small: Cluster) -> None:
    for _ in range(2 * BOUND):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.service.port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    stranger = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", small.service.port, ssl=stranger)
    await small.until(lambda: small.service.door.num_clients == 0)


async def test_nothing_is_left_of_handshakes_when_the_router_stops(authority: Authority) -> None:
    async with a_cluster(tls=authority.issue()) as cluster:
        door, port = cluster.service.door, cluster.service.port
        with silent(port, 3) as waiting:
            await cluster.until(lambda: door.num_clients == 3)
            await cluster.service.stop()
            assert door.num_clients == 0
            for sock in waiting:
                assert sock.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1)


async def test_many_silent_connections_hold_no_more_descriptors_than_allowed(
    authority: Authority, tmp_path: Path
) -> None:
    """400 of them at a router, as it is started, that takes 50."""
    bound, number = 50, 400
    tls = authority.issue()
    rendezvous = Rendezvous()
    async with (
        FakeWorker("prefill", rendezvous).serve() as prefiller,
        FakeWorker("decode", rendezvous).serve() as decoder,
        a_router_process(
            tmp_path,
            {"p": prefiller, "d": decoder},
            client_tls=authority.client(),
            tls={"cert_file": tls.cert_file, "key_file": tls.key_file},
            overload={"max_connections": bound},
            state=None,
        ) as router,
    ):
        descriptors = Path(f"/proc/{router.pid}/fd")
        before = len(list(descriptors.iterdir()))
        with silent(router.port, number):
            await asyncio.sleep(0.3)  # of the bound on those turned away, 1 s
            at_first = len(list(descriptors.iterdir())) - before
            assert bound <= at_first <= bound + MAX_TURNED_AWAY
            await asyncio.sleep(TURNED_AWAY_TIMEOUT_S + 0.5)
            assert len(list(descriptors.iterdir())) - before <= bound + 1  # the probe's, perhaps
            refused = await router.get("/health")
            assert refused.json()["error"]["code"] == "too_many_connections"
        client = Client(
            *await asyncio.open_connection("127.0.0.1", router.port, ssl=authority.client())
        )
        client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer()).status == 200
        client.close()
