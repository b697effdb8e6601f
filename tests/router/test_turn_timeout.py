"""Turns that take longer than they may: `router.turn_timeout_s`, and the header for one of them."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest

from conserve_sglang.router.executor import TIMEOUT_SWEEP_S
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.router_cluster import Answer, Cluster, a_cluster
from tests.fakes.router_family import a_family
from tests.router.test_responses import client_of
from tests.router.test_stopping import BODIES, CHAT, rest, slow

BOUND_S = 0.3
ASKED = {"x-conserve-timeout-ms": "300"}


def error_of(path: str, answer: Answer, *, in_stream: bool) -> str:
    """The message of the error a turn ended with, in its API's shape."""
    assert answer.is_whole
    name, _, data = answer.body.decode().strip().split("\n\n")[-1].rpartition("data: ")
    told = json.loads(data)
    if path == "/v1/messages":
        assert (told["type"], told["error"]["type"]) == ("error", "timeout_error")
        assert name == ("event: error\n" if in_stream else "")
        return str(told["error"]["message"])
    if path == "/v1/responses" and in_stream:
        assert (name, told["type"], told["code"]) == ("event: error\n", "error", "turn_timeout")
        return str(told["message"])
    assert (told["error"]["type"], told["error"]["code"]) == ("server_error", "turn_timeout")
    return str(told["error"]["message"])


def all_let_go(cluster: Cluster) -> bool:
    """Whether no worker is working on anything, nor is counted on to."""
    loads = cluster.service.brain.dispatcher.worker_loads()
    return not any(load.reserved_tokens or load.backlog_tokens for load in loads)


def is_looking(cluster: Cluster) -> bool:
    return cluster.service.door.executor._sweeper is not None


def timed_out(cluster: Cluster) -> int:
    return cluster.service.door.metrics.turns[Outcome.TIMED_OUT]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_turn_without_a_first_byte_is_a_504(path: str, stream: bool) -> None:
    async with a_cluster(turn_timeout_s=BOUND_S) as cluster:
        for worker in cluster.workers.values():
            worker.faults.delay_s = 30.0
        began = asyncio.get_running_loop().time()
        answer = await cluster.post(path, {**BODIES[path], "stream": stream})
        took_s = asyncio.get_running_loop().time() - began
        assert took_s > BOUND_S
        assert answer.status == 504
        assert answer.headers["x-should-retry"] == "false"
        assert "router.turn_timeout_s" in error_of(path, answer, in_stream=False)
        assert answer.headers.get("connection") != "close"
        workers = [worker for worker in cluster.workers.values() if worker.turns]
        assert len(workers) == 2  # the prefiller and a decoder
        await cluster.until(lambda: all(worker.turns[0].was_aborted for worker in workers))
        assert all_let_go(cluster)
        assert (timed_out(cluster), cluster.service.door.executor.num_open_turns) == (1, 0)


@pytest.mark.parametrize("path", BODIES)
async def test_stream_that_takes_longer_ends_with_an_event_and_its_conversation_goes_on(
    path: str,
) -> None:
    async with a_cluster(turn_timeout_s=BOUND_S) as cluster:
        named = {"x-conversation-id": "c"}
        first = await cluster.post(path, BODIES[path], named)
        assert first.status == 200
        decoder = first.headers["x-conserve-decoder"]
        slow(cluster.workers, 5.0)
        client = await cluster.connect()
        client.ask(path, {**BODIES[path], "stream": True}, named)
        assert (await client.head())[0] == 200
        assert "took longer" in error_of(path, await rest(client), in_stream=True)
        await cluster.until(lambda: cluster[decoder].turns[-1].was_aborted)
        assert all_let_go(cluster)
        assert timed_out(cluster) == 1
        slow(cluster.workers, 0.0)
        again = await cluster.post(path, BODIES[path], named)
        assert (again.status, again.headers["x-conserve-decoder"]) == (200, decoder)
        assert again.headers["x-conserve-reason"] == "pinned"


async def test_turn_that_waits_for_a_place_is_bounded_and_not_sent() -> None:
    async with a_cluster({"d0": "decode"}, is_met=False) as cluster:
        await cluster.until_met("d0")
        waiting = await cluster.post(CHAT, BODIES[CHAT], ASKED)
        assert (waiting.status, waiting.json()["error"]["code"]) == (504, "turn_timeout")
        assert not cluster["d0"].turns
        assert cluster.service.brain.dispatcher.num_queued == 0


async def test_first_turn_that_timed_out_leaves_its_conversation_usable() -> None:
    async with a_cluster(turn_timeout_s=BOUND_S) as cluster:
        slow(cluster.workers, 5.0)
        first = await cluster.chat("hello", stream=True)
        assert first.events[-1]["error"]["code"] == "turn_timeout"
        slow(cluster.workers, 0.0)
        for said in (("hello",), ("hello", "the answer", "more")):
            assert (await cluster.chat(*said)).status == 200
        assert all_let_go(cluster)


async def test_turns_in_time_are_left_alone_and_looked_at_only_while_one_is_bound() -> None:
    async with a_cluster() as cluster:
        assert (await cluster.chat("hello")).status == 200
        assert not is_looking(cluster)
        headers = {"x-conserve-timeout-ms": "60000", "x-conversation-id": "c"}
        assert (await cluster.post(CHAT, BODIES[CHAT], headers)).status == 200
        assert is_looking(cluster)
        await cluster.until(lambda: not is_looking(cluster), 4 * TIMEOUT_SWEEP_S)
        assert timed_out(cluster) == 0


async def test_client_may_ask_for_less_time_but_not_for_more() -> None:
    async with a_cluster(turn_timeout_s=BOUND_S) as cluster:
        for worker in cluster.workers.values():
            worker.faults.delay_s = 30.0
        more = {"x-conserve-timeout-ms": "20000"}
        answer = await asyncio.wait_for(cluster.post(CHAT, BODIES[CHAT], more), 5)
        assert answer.status == 504
    async with a_cluster(turn_timeout_s=20.0) as cluster:
        for worker in cluster.workers.values():
            worker.faults.delay_s = 30.0
        answer = await asyncio.wait_for(cluster.post(CHAT, BODIES[CHAT], ASKED), 5)
        assert answer.status == 504


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "x", "9" * 10])
async def test_time_that_is_no_number_is_refused(cluster: Cluster, value: str) -> None:
    answer = await cluster.post(CHAT, BODIES[CHAT], {"x-conserve-timeout-ms": value})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_timeout")
    assert "x-conserve-timeout-ms" in answer.json()["error"]["message"]


async def test_official_client_does_not_have_the_same_work_done_again() -> None:
    async with a_cluster(turn_timeout_s=BOUND_S) as cluster, client_of(cluster) as client:
        for worker in cluster.workers.values():
            worker.faults.delay_s = 30.0
        messages: Any = BODIES[CHAT]["messages"]
        with pytest.raises(openai.InternalServerError) as ended:
            await client.with_options(max_retries=2).chat.completions.create(
                model="tiny", messages=messages
            )
        assert (ended.value.status_code, ended.value.code) == (504, "turn_timeout")
        assert len(cluster["p0"].turns) == 1


async def test_turns_of_several_processes_are_bounded_too() -> None:
    async with a_family(turn_timeout_s=1.0) as family, AsyncExitStack() as stack:
        stack.push_async_callback(family.hang_up)
        first = await family.chat("hello")
        assert first.status == 200
        slow(family.workers, 10.0)
        streamed = await family.chat("hello", "x", "more", stream=True)
        assert streamed.events[-1]["error"]["code"] == "turn_timeout"
        for worker in family.workers.values():
            worker.faults.delay_s = 10.0
        whole = await family.chat("hi", name="other")
        assert (whole.status, whole.json()["error"]["code"]) == (504, "turn_timeout")
        dispatcher = family.many.brain.dispatcher
        await family.until(lambda: dispatcher.num_open_turns == 0)
        assert not any(load.reserved_tokens for load in dispatcher.worker_loads())
        await family.until(lambda: family.many.hub.metrics().turns[Outcome.TIMED_OUT] == 2)
        for worker in family.workers.values():
            worker.faults.delay_s = worker.faults.event_delay_s = 0.0
        assert (await family.chat("hello", "x", "again")).headers["x-conserve-reason"] == "pinned"
