"""A router that is told to stop cuts nothing short without a word, in one process or in several."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.router_cluster import Answer, Client, a_cluster
from tests.fakes.router_family import a_family
from tests.fakes.router_process import RouterProcess, a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

MESSAGES = [{"role": "user", "content": "count"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "count"},
    "/generate": {"text": "count"},
    "/v1/messages": {"model": "tiny", "max_tokens": 9, "messages": MESSAGES},
    "/v1/responses": {"model": "tiny", "input": "count"},
}
CHAT = "/v1/chat/completions"
LONG = "one two three four five six"


def slow(workers: dict[str, FakeWorker], event_delay_s: float) -> None:
    for worker in workers.values():
        worker.answer = LONG
        worker.faults.event_delay_s = event_delay_s


def says_stopping(path: str, answer: Answer) -> bool:
    """Whether a stream is framed to its end and its last event is this API's error."""
    assert answer.is_whole
    last = answer.body.decode().strip().split("\n\n")[-1]
    name, _, data = last.rpartition("data: ")
    told = json.loads(data)
    if path == "/v1/messages":
        assert name == "event: error\n"
        assert (told["type"], told["error"]["type"]) == ("error", "overloaded_error")
        return "The router is stopping" in told["error"]["message"]
    if path == "/v1/responses":
        assert name == "event: error\n"
        assert told["type"] == "error"
        return bool(told["code"] == "router_stopping")
    assert told["error"]["type"] == "server_error"
    return bool(told["error"]["code"] == "router_stopping")


def refused(answer: Answer) -> bool:
    """Whether a request was refused in an order that lets its client try elsewhere."""
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.headers["connection"] == "close"
    return "The router is stopping" in answer.json()["error"]["message"]


async def begun(client: Client, path: str) -> None:
    """A stream whose head is there, with the first event behind it."""
    client.ask(path, {**BODIES[path], "stream": True}, {"x-conversation-id": path})
    assert (await client.head())[0] == 200


async def rest(client: Client) -> Answer:
    body, is_whole = await client._chunks()
    return Answer(200, {}, body, is_whole)


# one process, in the test's loop


@pytest.mark.parametrize("path", BODIES)
async def test_stream_that_is_open_at_the_end_says_so(path: str) -> None:
    async with a_cluster(drain_s=0.2) as cluster:
        slow(cluster.workers, 5.0)
        client = await cluster.connect()
        await begun(client, path)
        await cluster.service.stop()
        assert says_stopping(path, await rest(client))
        assert await client.is_closed()
        turns = [turn for worker in cluster.workers.values() for turn in worker.turns]
        await cluster.until(lambda: turns[-1].was_aborted)


@pytest.mark.parametrize("path", BODIES)
async def test_turn_that_has_not_begun_is_refused_at_the_end(path: str) -> None:
    """Streams without a first byte, and answers that are not streamed."""
    async with a_cluster(drain_s=0.1) as cluster:
        for worker in cluster.workers.values():
            worker.faults.delay_s = 5.0
        clients = [await cluster.connect() for _ in range(2)]
        for client, stream in zip(clients, (False, True), strict=True):
            client.ask(path, {**BODIES[path], "stream": stream})
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 2)
        await cluster.service.stop()
        for client in clients:
            assert refused(await client.answer())
            assert await client.is_closed()


async def test_http_1_0_stream_ends_with_the_event_too() -> None:
    async with a_cluster(drain_s=0.0) as cluster:
        slow(cluster.workers, 5.0)
        client = await cluster.connect()
        body = json.dumps({**BODIES[CHAT], "stream": True}).encode()
        client.send(f"POST {CHAT} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await client.head()
        await cluster.service.stop()
        assert says_stopping(CHAT, Answer(200, {}, await client.reader.read()))


async def test_while_answers_are_finished_nothing_new_begins() -> None:
    async with a_cluster(drain_s=10.0) as cluster:
        slow(cluster.workers, 0.3)
        open_stream, idle = await cluster.connect(), await cluster.connect()
        await begun(open_stream, CHAT)
        stopping = asyncio.ensure_future(cluster.service.stop())
        await asyncio.sleep(0)
        idle.ask(CHAT, BODIES[CHAT])
        assert refused(await idle.answer())
        assert await idle.is_closed()
        for path, body in (*BODIES.items(), ("/v1/messages/count_tokens", {}), ("/v1/place", {})):
            assert refused(await cluster.post(path, body))
        for port in (cluster.service.port, cluster.service.control_port):
            health = await cluster.request("GET", "/health", port)
            assert (health.status, health.json()["status"]) == (503, "stopping")
        models = await cluster.request("GET", "/v1/models")
        assert (models.status, models.headers["connection"]) == (200, "close")
        assert not stopping.done()
        answer = await rest(open_stream)
        assert answer.is_whole
        assert answer.events[-1] == "[DONE]"
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await cluster.connect()


async def test_who_asks_what_is_no_turn_or_is_still_sending_is_told_as_well() -> None:
    async with a_cluster(drain_s=0.1, is_met=False) as cluster:
        asking, sending = await cluster.connect(), await cluster.connect()
        cluster.service.door.front._about.ask = lambda *_: None  # type: ignore[method-assign]
        asking.send(b"GET /v1/conversations/c HTTP/1.1\r\nhost: x\r\n\r\n")
        sending.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        await cluster.until(lambda: any(c.is_waiting for c in cluster.service.door._clients))
        await cluster.service.stop()
        for client in (asking, sending):
            assert refused(await client.answer())


async def test_told_to_hurry_it_waits_for_no_answer() -> None:
    async with a_cluster(drain_s=60.0) as cluster:
        slow(cluster.workers, 30.0)
        client = await cluster.connect()
        await begun(client, CHAT)
        stopping = asyncio.ensure_future(cluster.service.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        cluster.service.hurry()
        assert says_stopping(CHAT, await rest(client))
        await asyncio.wait_for(stopping, 10)


async def test_no_turn_that_waits_is_sent_for_the_room_that_another_leaves() -> None:
    async with a_cluster(drain_s=0.0) as cluster:
        slow(cluster.workers, 5.0)
        first = await cluster.connect()
        await begun(first, CHAT)
        for worker in cluster.workers.values():
            worker.faults.delay_s = 5.0
        waiting = [await cluster.connect() for _ in range(3)]
        for client in waiting:  # of the same conversation: behind the first
            client.ask(CHAT, BODIES[CHAT], {"x-conversation-id": "other"})
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 4)
        before = sum(len(worker.turns) for worker in cluster.workers.values())
        await cluster.service.stop()
        assert [refused(await client.answer()) for client in waiting] == [True] * 3
        assert sum(len(worker.turns) for worker in cluster.workers.values()) - before <= 2


# as it is started


@asynccontextmanager
async def started(folder: Path, **router: Any) -> AsyncIterator[tuple[RouterProcess, Any]]:
    rendezvous = Rendezvous()
    workers = {"p": FakeWorker("prefill", rendezvous), "d": FakeWorker("decode", rendezvous)}
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        process = a_router_process(folder, workers, state=None, **router)
        yield await stack.enter_async_context(process), workers


async def streams(router: RouterProcess) -> dict[str, Client]:
    """One open stream of each API."""
    clients = {}
    for path in BODIES:
        clients[path] = Client(*await asyncio.open_connection("127.0.0.1", router.port))
        await begun(clients[path], path)
    return clients


async def all_say_stopping(clients: dict[str, Client]) -> None:
    for path, client in clients.items():
        assert says_stopping(path, await rest(client)), path
        client.close()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("is_told_twice", [False, True])
async def test_router_that_is_told_to_stop(
    tmp_path: Path, processes: int, is_told_twice: bool
) -> None:
    drain_s = 60.0 if is_told_twice else 0.3
    async with started(tmp_path, processes=processes, drain_s=drain_s) as (router, workers):
        slow(workers, 30.0)
        clients = await streams(router)
        os.kill(router.pid, signal.SIGTERM)
        if is_told_twice:
            for _ in range(100):  # until the signal was taken
                health = await router.get("/health")
                if health.status == 503:
                    break
                await asyncio.sleep(0.05)
            assert (health.status, health.json()["status"]) == (503, "stopping")
            assert (await router.get("/ready")).status == 503
            assert refused(await router.post(CHAT, BODIES[CHAT]))
            os.kill(router.pid, signal.SIGINT)
        await all_say_stopping(clients)
        assert await asyncio.wait_for(router.ended(), 10) == 0


async def test_front_whose_brain_is_killed(tmp_path: Path) -> None:
    async with started(tmp_path, processes=2, drain_s=60.0) as (router, workers):
        slow(workers, 30.0)
        clients = await streams(router)
        for worker in workers.values():
            worker.faults.delay_s = 30.0
        waiting = Client(*await asyncio.open_connection("127.0.0.1", router.port))
        waiting.ask(CHAT, BODIES[CHAT])
        await asyncio.sleep(0.2)
        os.kill(router.pid, signal.SIGKILL)
        await all_say_stopping(clients)
        assert refused(await waiting.answer())
        waiting.close()


async def test_front_that_is_told_twice_by_signals_ends_its_own_streams() -> None:
    async with a_family(drain_s=60.0) as family:
        slow(family.workers, 30.0)
        client = await family.connect()
        await begun(client, CHAT)
        pids = family.many.family.pids()
        for _ in range(2):
            for pid in pids:
                with suppress(ProcessLookupError):  # it had no stream
                    os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.1)
        assert says_stopping(CHAT, await rest(client))
