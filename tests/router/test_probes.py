"""What whoever watches over the router is told: `/live`, `/ready` and `/health`."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from conserve_sglang.router.fleet import WorkerState
from tests.fakes.router_cluster import Answer, Cluster, a_cluster
from tests.fakes.router_family import a_family
from tests.fakes.router_process import a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

LIVE, READY = ("/live", "/liveness"), ("/ready", "/readiness")


def told(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["status"]


async def both_ports(cluster: Cluster, path: str) -> set[tuple[int, str]]:
    ports = (cluster.service.port, cluster.service.control_port)
    return {told(await cluster.request("GET", path, port)) for port in ports}


async def test_a_router_that_serves_is_alive_ready_and_well(cluster: Cluster) -> None:
    for path in LIVE:
        assert await both_ports(cluster, path) == {(200, "alive")}
    for path in READY:
        assert await both_ports(cluster, path) == {(200, "ready")}
    assert await both_ports(cluster, "/health") == {(200, "ok")}


@pytest.mark.parametrize("path", [*LIVE, *READY])
async def test_head_is_served_and_nothing_else(cluster: Cluster, path: str) -> None:
    client = await cluster.connect()
    client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    status, headers = await client.head()
    assert status == 200
    assert int(headers["content-length"]) > 0
    posted = await cluster.post(path, {})
    assert (posted.status, posted.headers["allow"]) == (405, "GET, HEAD")


async def test_without_a_prefiller_it_is_not_ready_but_serves_who_is_pinned(
    cluster: Cluster,
) -> None:
    await cluster.chat("hello")
    await cluster["p0"].stop()
    await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
    assert await both_ports(cluster, "/ready") == {(503, "not_ready")}
    assert (await cluster.request("GET", "/ready")).json()["why"] == "no_prefiller"
    assert await both_ports(cluster, "/health") == {(200, "degraded")}
    health = (await cluster.request("GET", "/health")).json()
    assert health["roles_without_worker"] == ["prefill"]
    assert health["new_conversations"] == "no_prefiller"
    assert await both_ports(cluster, "/live") == {(200, "alive")}
    assert (await cluster.chat("hello", "the answer", "more")).status == 200


async def test_where_every_turn_needs_a_prefiller_nothing_is_served_without() -> None:
    async with a_cluster(policy="stock-pd") as cluster:
        await cluster["p0"].stop()
        await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
        assert await both_ports(cluster, "/health") == {(503, "unavailable")}
        assert await both_ports(cluster, "/ready") == {(503, "not_ready")}


async def test_without_a_decoder_nothing_is_served(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        await cluster[name].stop()
    await cluster.until(lambda: not cluster.service.fleet.num_decoders_up)
    assert await both_ports(cluster, "/health") == {(503, "unavailable")}
    assert (await cluster.request("GET", "/ready")).json()["why"] == "no_decoder"
    assert await both_ports(cluster, "/live") == {(200, "alive")}


async def test_a_full_fleet_is_ready(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.delay_s = 1.0
    asked = [asyncio.ensure_future(cluster.chat("x" * 100_000, name=f"{n}")) for n in range(6)]
    await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 6)
    assert await both_ports(cluster, "/ready") == {(200, "ready")}
    for each in asked:
        each.cancel()


async def test_before_clients_are_served_it_is_starting(cluster: Cluster) -> None:
    cluster.service._status.is_serving = False
    answer = await cluster.request("GET", "/ready", cluster.service.control_port)
    assert (answer.status, answer.json()["why"]) == (503, "starting")
    health = await cluster.request("GET", "/health", cluster.service.control_port)
    assert health.json()["new_conversations"] == "starting"


async def test_a_router_that_stops_is_alive_and_not_ready() -> None:
    async with a_cluster(drain_s=10.0) as cluster:
        for worker in cluster.workers.values():
            worker.faults.event_delay_s = 0.3
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": [], "stream": True})
        await client.head()
        stopping = asyncio.ensure_future(cluster.service.stop())
        await asyncio.sleep(0)
        assert await both_ports(cluster, "/ready") == {(503, "not_ready")}
        ready = await cluster.request("GET", "/ready")
        assert (ready.json()["why"], ready.headers["connection"]) == ("stopping", "close")
        assert await both_ports(cluster, "/live") == {(200, "stopping")}
        health = (await cluster.request("GET", "/health")).json()
        assert (health["status"], health["new_conversations"]) == ("stopping", "stopping")
        assert not stopping.done()
        await stopping


async def test_fronts_tell_what_their_brain_knows() -> None:
    async with a_family() as family:
        assert await both_ports(family, "/ready") == {(200, "ready")}
        assert await both_ports(family, "/live") == {(200, "alive")}
        await family["p0"].stop()
        await family.until(lambda: family.state_of("p0") is WorkerState.LOST)
        assert await both_ports(family, "/ready") == {(503, "not_ready")}
        assert (await family.request("GET", "/ready")).json()["why"] == "no_prefiller"


@pytest.mark.parametrize("processes", [1, 2])
async def test_router_as_it_is_started_tells_a_new_conversation_the_truth(
    tmp_path: Path, processes: int
) -> None:
    rendezvous = Rendezvous()
    workers = {"p": FakeWorker("prefill", rendezvous), "d": FakeWorker("decode", rendezvous)}
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        router = await stack.enter_async_context(
            a_router_process(
                tmp_path, workers, processes=processes, state=None, queue_timeout_s=0.3,
                health={"probe_interval_s": 0.1},
            )
        )  # fmt: skip
        assert told(await router.get("/ready")) == (200, "ready")
        assert (await router.chat("hello", name="pinned")).status == 200
        await workers["p"].stop()
        for _ in range(100):
            if (await router.get("/ready")).status == 503:
                break
            await asyncio.sleep(0.05)
        assert told(await router.get("/ready")) == (503, "not_ready")
        assert told(await router.get("/health")) == (200, "degraded")
        assert told(await router.get("/live")) == (200, "alive")
        answer = await router.chat("hello", name="new")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")
        assert "can prefill" in answer.json()["error"]["message"]
        pinned = await router.chat("hello", "the answer", "more", name="pinned")
        assert pinned.status == 200
