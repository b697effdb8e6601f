"""Workers that answer 429 or 503, as SGLang does when its own queue is full."""

import asyncio
from typing import Any

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.workers.breaker import BreakerState
from tests.fakes.router_cluster import Answer, Cluster, a_cluster

CHAT = "/v1/chat/completions"
FIRST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/generate": {"text": "hello"},
}
NAMED = {"x-conversation-id": "c"}
TAIL = ("hello", "the answer", "more")


def books(cluster: Cluster) -> list[tuple[int, int, int, int]]:
    loads = cluster.service.brain.dispatcher.worker_loads()
    return [
        (load.resident_tokens, load.reserved_tokens, load.backlog_tokens, load.num_conversations)
        for load in loads
    ]


def placed(answer: Answer) -> tuple[str, str]:
    return answer.headers["x-conserve-decoder"], answer.headers["x-conserve-reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FIRST)
async def test_pinned_conversation_moves_from_a_full_queue_unseen_by_its_client(
    cluster: Cluster, path: str, stream: bool
) -> None:
    await cluster.post(path, FIRST[path], NAMED)
    cluster["d0"].faults.queue_is_full = True
    answer = await cluster.post(path, {**FIRST[path], "stream": stream}, NAMED)
    assert answer.status == 200
    assert b"answer" in answer.body
    assert b"full" not in answer.body
    assert placed(answer) == ("d1", "decoder_busy")
    assert len(cluster["p0"].turns) == 2
    metrics = cluster.service.door.metrics
    assert metrics.failures[FailureCause.DECODER_BUSY] == metrics.num_retries == 1
    assert metrics.placements[PlacementReason.DECODER_BUSY] == 1
    await cluster.until(lambda: len(cluster["d0"].closed_sessions) == 1)
    after = await cluster.post(path, FIRST[path], NAMED)
    assert placed(after) == ("d1", "pinned")


async def test_one_that_is_moved_says_why() -> None:
    async with a_cluster() as cluster:
        await cluster.chat("hello")
        cluster["d0"].faults.queue_is_full = True
        await cluster.chat(*TAIL)
        body = (await cluster.request("GET", "/v1/conversations/c")).json()
        told = body["placements"][-1]
        assert told["reason"] == "decoder_busy"
        assert told["because"].startswith("the conversation's decoder said that it was busy: p0")
        assert told["failed_attempts"] == [
            {
                "decoder": "d0",
                "prefiller": None,
                "cause": "decoder_busy",
                "because": "the decoder said that it was busy",
            }
        ]
        answer = await cluster.request("GET", "/metrics", cluster.service.control_port)
        text = answer.body.decode()
        for series in (
            'failed_attempts_total{cause="decoder_busy"} 1.0',
            'phase_one_reentries_total{cause="decoder_busy"} 1.0',
        ):
            assert f"conserve_router_{series}" in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [429, 503])
async def test_where_no_other_takes_it_the_client_hears_the_worker_and_nothing_has_moved(
    cluster: Cluster, status: int, stream: bool
) -> None:
    await cluster.chat("hello")
    before = books(cluster)
    cluster["d0"].faults.statuses.append(status)
    cluster["d1"].faults.statuses.append(status)
    answer = await cluster.chat(*TAIL, stream=stream)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["message"]) == (
        status, "worker_busy", "told to fail",
    )  # fmt: skip
    assert set(error) == {"message", "type", "param", "code"}
    assert int(answer.headers["retry-after"]) > 0
    assert books(cluster) == before
    assert cluster["d0"].closed_sessions == []
    metrics = cluster.service.door.metrics
    assert metrics.rejections[RejectReason.WORKERS_BUSY] == 1
    again = await cluster.chat(*TAIL)
    assert placed(again) == ("d0", "pinned")


async def test_full_queue_told_within_a_stream_becomes_a_status() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        await cluster.chat("hello")
        cluster["d0"].faults.queue_is_full = True
        answer = await cluster.chat(*TAIL, stream=True)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["message"] == "The request queue is full."
        assert len(cluster["d0"].turns) == 2
        cluster["d0"].faults.queue_is_full = False
        assert placed(await cluster.chat(*TAIL)) == ("d0", "pinned")


async def test_busy_prefiller_is_passed_by() -> None:
    modes = {"p0": "prefill", "p1": "prefill", "d0": "decode"}
    async with a_cluster(modes) as cluster:
        cluster["p0"].faults.statuses.append(503)
        answer = await cluster.chat("hello")
        assert answer.status == 200
        assert answer.headers["x-conserve-prefiller"] == "p1"
        assert cluster["d0"].turns[0].was_aborted
        assert len(set(cluster["p1"].rendezvous.rooms_used)) == 1


async def test_only_prefiller_that_is_busy_is_told_to_the_client(cluster: Cluster) -> None:
    cluster["p0"].faults.statuses.append(503)
    answer = await cluster.chat("hello")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    await cluster.until(lambda: cluster["d0"].turns[0].was_aborted)
    assert (await cluster.chat("hello")).status == 200


async def test_conversation_on_mixed_workers_moves_too() -> None:
    async with a_cluster({"m0": "null", "m1": "null"}, policy="colocated") as cluster:
        first = await cluster.chat("hello")
        cluster[first.headers["x-conserve-decoder"]].faults.queue_is_full = True
        moved = await cluster.chat(*TAIL)
        assert moved.status == 200
        assert moved.headers["x-conserve-decoder"] != first.headers["x-conserve-decoder"]


async def test_busy_workers_are_neither_broken_nor_asked_more_than_once_each() -> None:
    """Each turn asks one; beyond that each worker is asked at most once a second."""
    decoders = [f"d{n}" for n in range(4)]
    async with a_cluster({"p0": "prefill", **dict.fromkeys(decoders, "decode")}) as cluster:
        for name in decoders:
            cluster[name].faults.statuses = [503] * 1000
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        answers = [await cluster.chat("hello", name=f"c{n}") for n in range(40)]
        windows = 1 + int(loop.time() - began_s)
        assert {answer.status for answer in answers} == {503}
        asked = sum(len(cluster[name].turns) for name in decoders)
        assert 40 <= asked <= 40 + len(decoders) * windows
        for name in decoders:
            worker = cluster.service.fleet.worker(WorkerId(name))
            assert worker.breaker.state is BreakerState.CLOSED
            assert cluster.service.fleet.is_up(WorkerId(name))
        metrics = cluster.service.door.metrics
        assert metrics.rejections[RejectReason.WORKERS_BUSY] == 40
        assert cluster.service.brain.dispatcher.num_conversations == 0


async def test_stream_that_lost_its_decoder_goes_on_past_a_busy_one() -> None:
    modes = {"p0": "prefill", **{f"d{n}": "decode" for n in range(3)}}
    async with a_cluster(modes) as cluster:
        cluster["d0"].faults.cut_after_events = 1
        cluster["d1"].faults.statuses.append(503)
        answer = await cluster.chat("hello", stream=True)
        assert answer.is_whole
        said = "".join(e["choices"][0]["delta"].get("content") or "" for e in answer.events[:-1])
        assert said == "the answer"
        assert [len(cluster[name].turns) for name in ("d0", "d1", "d2")] == [1, 1, 1]


async def test_history_finds_the_conversation_where_it_moved_to(cluster: Cluster) -> None:
    await cluster.chat("hello", name=None)
    cluster["d0"].faults.queue_is_full = True
    assert placed(await cluster.chat(*TAIL, name=None))[0] == "d1"
    longer = (*TAIL, "the answer", "and more")
    assert placed(await cluster.chat(*longer, name=None)) == ("d1", "pinned")
    assert cluster.service.brain.dispatcher.num_conversations == 1
