"""Clients that send nothing, or never finish; times are counted in sweeps."""

import asyncio
import socket

from conserve_sglang.router.patience import (
    MAX_HEAD_SWEEPS,
    MAX_QUIET_SWEEPS,
    MAX_REQUEST_SWEEPS,
    MAX_STUCK_SWEEPS,
    MIN_TAKEN_BYTES,
)
from conserve_sglang.router.request_reader import RequestReader
from tests.fakes.router_cluster import Cluster

BODY = b'{"messages":[]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n"


def sweep(cluster: Cluster, times: int) -> None:
    for _ in range(times):
        for client in tuple(cluster.service.door._clients):
            client.sweep()


async def test_idle_connection_is_kept_for_long_and_then_closed(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.ask("/v1/chat/completions", BODY)
    await client.answer()
    sweep(cluster, MAX_QUIET_SWEEPS)
    client.ask("/v1/chat/completions", BODY)
    assert (await client.answer()).status == 200
    sweep(cluster, MAX_QUIET_SWEEPS + 1)
    assert await client.is_closed()


async def test_head_that_never_ends_is_a_408(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(HEAD)
    for _ in range(MAX_HEAD_SWEEPS + 1):
        client.send(b"x: y\r\n")
        await asyncio.sleep(0.01)
        sweep(cluster, 1)
    answer = await client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (408, "request_timeout")


async def test_head_in_two_parts_is_read(cluster: Cluster) -> None:
    client = await cluster.connect()
    sweep(cluster, MAX_QUIET_SWEEPS)
    client.send(HEAD)
    await asyncio.sleep(0.01)
    sweep(cluster, MAX_HEAD_SWEEPS)
    client.send(b"\r\n" + BODY)
    assert (await client.answer()).status == 200


async def test_body_may_take_its_time_but_not_for_ever(cluster: Cluster) -> None:
    slow, trickling = await cluster.connect(), await cluster.connect()
    for client in (slow, trickling):
        client.send(HEAD + b"\r\n" + BODY[:5])
    await asyncio.sleep(0.01)
    sweep(cluster, MAX_REQUEST_SWEEPS - 1)
    for client in (slow, trickling):
        client.send(BODY[5:9])
    await asyncio.sleep(0.01)
    sweep(cluster, 1)
    slow.send(BODY[9:])
    assert (await slow.answer()).status == 200
    sweep(cluster, 1)
    assert (await trickling.answer()).status == 408


async def ask_for_much(cluster: Cluster) -> socket.socket:
    """A client that asks for more than the sockets hold, and reads nothing yet."""
    cluster["d0"].answer = "x" * 20_000_000
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", cluster.service.port))
    await loop.sock_sendall(client, HEAD + b"\r\n" + BODY)
    await cluster.until(
        lambda: any(each._patience.unsent_bytes for each in cluster.service.door._clients)
    )
    return client


async def test_client_that_does_not_take_its_answer_is_let_go(cluster: Cluster) -> None:
    with await ask_for_much(cluster):
        sweep(cluster, MAX_STUCK_SWEEPS)
        assert len(cluster.service.door._clients) == 1
        sweep(cluster, 2)
        await cluster.until(lambda: not cluster.service.door._clients)
        assert cluster.service.door.executor.num_open_turns == 0


async def test_client_that_takes_its_answer_slowly_is_not(cluster: Cluster) -> None:
    loop = asyncio.get_running_loop()
    with await ask_for_much(cluster) as client:
        (connection,) = cluster.service.door._clients
        for _ in range(3):
            sweep(cluster, MAX_STUCK_SWEEPS)
            before = connection._transport.get_write_buffer_size()
            while connection._transport.get_write_buffer_size() > before - MIN_TAKEN_BYTES:
                assert await asyncio.wait_for(loop.sock_recv(client, 100_000), 5)
            sweep(cluster, 1)
        assert cluster.service.door._clients


async def test_client_that_waits_for_its_answer_is_not_idle(cluster: Cluster) -> None:
    cluster["d0"].faults.delay_s = 0.2
    client = await cluster.connect()
    client.ask("/v1/chat/completions", BODY)
    await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 1)
    sweep(cluster, MAX_QUIET_SWEEPS * 2)
    assert (await client.answer()).status == 200


def test_large_body_in_one_segment_is_no_large_head() -> None:
    reader = RequestReader(200_000)
    for _ in range(2):
        reader.feed(HEAD.replace(b": 15", b": 150000") + b"\r\n" + b"x" * 150_000)
        assert reader.refusal is None
    assert len(reader.ready) == 2
