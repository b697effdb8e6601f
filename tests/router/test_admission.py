"""How many connections and bytes of requests the router takes in."""

import asyncio
import json

from conserve_sglang.core.tier import Overload
from tests.fakes.router_cluster import Client, Cluster, a_cluster

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}


def held(cluster: Cluster) -> int:
    return cluster.service.door._held.num_bytes


async def test_connection_too_many_is_told_so_and_closed() -> None:
    async with a_cluster(overload=Overload(max_connections=2)) as cluster:
        clients = [await cluster.connect() for _ in range(2)]
        for client in clients:
            client.ask(CHAT, BODY)
            assert (await client.answer()).status == 200
        extra = await cluster.connect()
        extra.ask(CHAT, BODY)
        answer = await extra.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        assert await extra.is_closed()
        clients[0].close()
        await cluster.until(lambda: len(cluster.service.door._clients) == 1)
        assert (await cluster.post(CHAT, BODY)).status == 200


async def test_bytes_of_requests_are_bounded_over_all_connections() -> None:
    bounds = Overload(max_held_bytes=100_000, max_prefill_backlog_tokens=1)
    async with a_cluster(overload=bounds) as cluster:
        cluster["p0"].faults.delay_s = 0.3
        body = {"messages": [{"role": "user", "content": "x" * 30_000}]}
        clients = [await cluster.connect() for _ in range(6)]
        for client in clients:
            client.ask(CHAT, body)
        answers = await asyncio.gather(*(client.answer() for client in clients))
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [200] * 3 + [503] * 3
        refused = [answer for answer in answers if answer.status == 503]
        assert {answer.json()["error"]["code"] for answer in refused} == {"router_busy"}
        await cluster.hang_up()
        await cluster.until(lambda: held(cluster) == 0)
        assert (await cluster.post(CHAT, body)).status == 200


async def test_half_a_body_counts_and_is_given_back_when_its_client_leaves() -> None:
    async with a_cluster() as cluster:
        client = await cluster.connect()
        client.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n")
        client.send(b"x" * 50_000)
        await cluster.until(lambda: held(cluster) > 50_000)
        client.close()
        await cluster.until(lambda: held(cluster) == 0)


async def test_nothing_stays_counted_on_a_connection_at_rest(cluster: Cluster) -> None:
    client = await cluster.connect()
    for _ in range(3):
        client.ask(CHAT, BODY)
        assert (await client.answer()).status == 200
    assert held(cluster) == 0
    raw = json.dumps(BODY).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    client.send((head % (CHAT.encode(), len(raw)) + raw) * 3)  # pipelined
    for _ in range(3):
        assert (await client.answer()).status == 200
    assert held(cluster) == 0


async def test_many_refused_connections_do_not_disturb_those_inside() -> None:
    async with a_cluster(overload=Overload(max_connections=1)) as small:
        first = await small.connect()
        first.ask(CHAT, BODY)
        await first.answer()
        refused: list[Client] = [await small.connect() for _ in range(50)]
        for client in refused:
            assert (await client.answer()).status == 503
        first.ask(CHAT, BODY)
        assert (await first.answer()).status == 200, "who is in is served"
