"""Workers drained, added and removed through the control port while turns run."""

import asyncio
import json
import logging
from typing import Any

import pytest

from conserve_sglang.router.worker import WorkerState
from tests.fakes.router_cluster import Answer, Client, Cluster, a_cluster
from tests.fakes.sglang_worker import FakeWorker


async def control(cluster: Cluster, method: str, path: str, body: Any = None) -> Answer:
    port = cluster.service.control_port
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} /admin/workers{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n"
    client.send(head.encode() + b"\r\n" + raw)
    answer = await client.answer()
    client.close()
    return answer


async def under_way(cluster: Cluster, name: str) -> "asyncio.Task[Answer]":
    """A streamed turn that has begun on d0."""
    running = sum(len(cluster[each].turns) for each in ("d0", "d1"))
    task = asyncio.ensure_future(cluster.chat("hello", name=name, stream=True))
    await cluster.until(lambda: sum(len(cluster[each].turns) for each in ("d0", "d1")) > running)
    return task


async def test_drain_waits_for_running_turns_and_says_so(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.1
    running = await under_way(cluster, "a")
    drained = await control(cluster, "POST", "/d0/drain?timeout_s=5")
    assert running.done()
    assert running.result().events[-1] == "[DONE]"
    assert drained.status == 200
    body = drained.json()
    assert (body["id"], body["state"], body["running_turns"]) == ("d0", "draining", 0)


async def test_drain_that_takes_longer_is_a_202_and_goes_on(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.2
    running = await under_way(cluster, "a")
    answer = await control(cluster, "POST", "/d0/drain?timeout_s=0")
    assert (answer.status, answer.json()["running_turns"]) == (202, 1)
    assert answer.headers["location"] == "/admin/workers/d0"
    await running
    status = await control(cluster, "GET", "/d0")
    assert (status.json()["state"], status.json()["running_turns"]) == ("draining", 0)


async def test_draining_decoder_gets_no_turns_and_its_conversations_move(cluster: Cluster) -> None:
    first = await cluster.chat("hello")
    assert first.headers["x-conserve-decoder"] == "d0"
    await control(cluster, "POST", "/d0/drain")
    moved = await cluster.chat("hello", "the answer", "more")
    assert moved.headers["x-conserve-decoder"] == "d1"
    assert moved.headers["x-conserve-reason"] == "drained"
    await cluster.until(lambda: len(cluster["d0"].closed_sessions) == 1)
    for number in range(3):
        answer = await cluster.chat("hello", name=f"n{number}")
        assert answer.headers["x-conserve-decoder"] == "d1"


async def test_undrained_before_the_next_turn_nothing_has_moved(cluster: Cluster) -> None:
    await cluster.chat("hello")
    await control(cluster, "POST", "/d0/drain")
    undrained = await control(cluster, "POST", "/d0/undrain")
    assert undrained.json()["state"] == "up"
    answer = await cluster.chat("hello", "the answer", "more")
    assert answer.headers["x-conserve-reason"] == "pinned"
    assert len(cluster["p0"].turns) == 1


async def test_drained_worker_that_restarts_stays_drained(cluster: Cluster) -> None:
    await control(cluster, "POST", "/d0/drain")
    port = cluster["d0"].port
    await cluster["d0"].stop()
    await cluster.until(lambda: cluster.state_of("d0") is WorkerState.LOST)
    await cluster["d0"].start(port)
    await cluster.until_met("d0")
    answer = await cluster.chat("hello")
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert (await cluster.request("GET", "/health")).json()["status"] == "degraded"


async def test_role_whose_only_worker_drains_is_missing(cluster: Cluster) -> None:
    await control(cluster, "POST", "/p0/drain")
    health = await cluster.request("GET", "/health")
    assert (health.status, health.json()["roles_without_worker"]) == (200, ["prefill"])
    assert health.json()["new_conversations"] == "no_prefiller"
    assert (await cluster.request("GET", "/ready")).status == 503
    waiting = asyncio.ensure_future(cluster.chat("hello"))
    await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 1)
    await control(cluster, "POST", "/p0/undrain")
    assert (await waiting).status == 200


async def test_added_worker_is_met_and_given_turns(cluster: Cluster) -> None:
    async with FakeWorker("decode", cluster["d0"].rendezvous).serve() as newcomer:
        added = await control(
            cluster, "POST", "", {"id": "d2", "tier": "d0", "port": newcomer.port}
        )
        assert (added.status, added.json()["state"]) == (201, "unknown")
        assert added.headers["location"] == "/admin/workers/d2"
        again = await control(
            cluster, "POST", "", {"id": "d2", "tier": "d0", "port": newcomer.port}
        )
        assert again.status == 200
        await cluster.until_met("d2")
        for number in range(3):
            await cluster.chat("hello", name=f"n{number}")
        assert len(newcomer.turns) == 1
        removed = await control(cluster, "DELETE", "/d2")
        assert removed.json() == {"id": "d2", "removed": True}
        ids = [each["id"] for each in (await control(cluster, "GET", "")).json()["workers"]]
        assert ids == ["p0", "d0", "d1"]


@pytest.mark.parametrize(
    ("worker", "status", "message"),
    [
        ({"id": "d0", "tier": "d0", "port": 9}, 409, "Remove it first"),
        ({"id": "d9", "tier": "zz", "port": 9}, 400, "no tier 'zz'; it has p0, d0, d1"),
        ({"id": "d9", "tier": "d0", "port": 9, "role": "prefill"}, 400, "is a decode tier"),
        ({"id": "d9", "tier": "p0", "port": 9}, 400, "bootstrap_port: missing"),
        ({"id": "d9", "tier": "d0", "port": 9, "bootstrap_port": 8}, 400, "has none; remove it"),
        ({"id": "D 9", "tier": "d0", "port": 9}, 400, "A worker is written as"),
        ({"id": "d9", "tier": "d0", "prot": 9}, 400, "unknown field"),
    ],
)
async def test_worker_that_breaks_a_rule_is_not_added(
    cluster: Cluster, worker: dict[str, Any], status: int, message: str
) -> None:
    answer = await control(cluster, "POST", "", worker)
    assert answer.status == status
    assert message in answer.json()["error"]["message"]
    assert len(cluster.service.fleet.workers()) == 3


async def test_worker_on_a_port_that_is_taken_is_not_added(cluster: Cluster) -> None:
    taken = {"id": "d9", "tier": "d0", "port": cluster["d1"].port}
    answer = await control(cluster, "POST", "", taken)
    assert "is worker d1's already" in answer.json()["error"]["message"]


async def test_tokens_are_counted_by_the_workers_there_are(cluster: Cluster) -> None:
    said = [{"role": "user", "content": "hello"}]
    async with FakeWorker("decode", cluster["d0"].rendezvous).serve() as newcomer:
        await control(cluster, "POST", "", {"id": "d2", "tier": "d0", "port": newcomer.port})
        await cluster.until_met("d2")
        for name in ("p0", "d0", "d1"):
            assert (await control(cluster, "DELETE", f"/{name}")).status == 200
        counted = await cluster.post(
            "/v1/messages/count_tokens", {"model": "tiny", "messages": said}
        )
        assert (counted.status, counted.json()) == (200, {"input_tokens": len("hello")})


async def test_removal_waits_for_running_turns(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.1
    running = await under_way(cluster, "a")
    assert (await control(cluster, "DELETE", "/d0?timeout_s=0")).status == 202
    assert (await running).events[-1] == "[DONE]"
    await cluster.until(lambda: len(cluster.service.fleet.workers()) == 2)
    assert (await control(cluster, "GET", "/d0")).status == 404


@pytest.mark.parametrize(
    ("how", "reason"),
    [("", "drained"), ("?force=1", "worker_removed")],
    ids=["in order", "by force"],
)
async def test_conversation_of_a_removed_worker_says_whether_that_was_drained(
    cluster: Cluster, how: str, reason: str
) -> None:
    await cluster.chat("hello")
    assert (await control(cluster, "DELETE", f"/d0{how}")).status == 200
    moved = await cluster.chat("hello", "the answer", "more")
    assert (moved.headers["x-conserve-decoder"], moved.headers["x-conserve-reason"]) == (
        "d1",
        reason,
    )


async def test_forced_removal_sends_its_turns_elsewhere(cluster: Cluster) -> None:
    cluster["d0"].faults.delay_s = 5.0
    running = asyncio.ensure_future(cluster.chat("hello"))
    await cluster.until(lambda: bool(cluster["d0"].turns))
    removed = await control(cluster, "DELETE", "/d0?force=1")
    assert removed.json()["removed"]
    answer = await running
    assert (answer.status, answer.headers["x-conserve-decoder"]) == (200, "d1")
    told = (await cluster.request("GET", "/v1/conversations/c")).json()["placements"]
    assert told[0]["failed_attempts"] == [
        {
            "decoder": "d0",
            "prefiller": "p0",
            "cause": "decoder_removed",
            "because": "an operator removed the decoder",
        }
    ]
    assert told[0]["reason"] == "worker_removed"


async def test_forced_removal_of_a_prefiller_is_told_as_such() -> None:
    modes = {"p0": "prefill", "p1": "prefill", "d0": "decode"}
    async with a_cluster(modes) as cluster:
        cluster["p0"].faults.delay_s = 5.0
        running = asyncio.ensure_future(cluster.chat("hello"))
        await cluster.until(lambda: bool(cluster["p0"].turns))
        await control(cluster, "DELETE", "/p0?force=1")
        assert (await running).status == 200
        (told,) = (await cluster.request("GET", "/v1/conversations/c")).json()["placements"]
        assert told["reason"] == "first_turn"
        assert [each["cause"] for each in told["failed_attempts"]] == ["prefiller_removed"]
        port = cluster.service.control_port
        metrics = (await cluster.request("GET", "/metrics", port)).body.decode()
        assert 'conserve_router_failed_attempts_total{cause="prefiller_removed"} 1.0' in metrics
        assert 'conserve_router_failed_attempts_total{cause="prefiller_failed"} 0.0' in metrics


async def test_removal_under_a_stream_is_the_reason_for_which_it_goes_on_elsewhere(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster["d0"].faults.event_delay_s = 0.1
    client = await cluster.connect()
    client.ask("/v1/chat/completions", {"messages": [], "stream": True}, {"x-conversation-id": "a"})
    await client.head()
    await asyncio.sleep(0.15)
    await control(cluster, "DELETE", "/d0?force=1")
    body, is_whole = await client._chunks()
    assert is_whole
    assert body.endswith(b"data: [DONE]\n\n")
    logged = [record.__dict__ for record in caplog.records]
    (line,) = [each for each in logged if each.get("event") == "turn_interrupted"]
    assert line["fields"]["why"] == "decoder_removed"
    (told,) = (await cluster.request("GET", "/v1/conversations/a")).json()["placements"]
    assert (told["reason"], told["decoder"]) == ("worker_removed", "d1")
    port = cluster.service.control_port
    metrics = (await cluster.request("GET", "/metrics", port)).body.decode()
    assert 'phase_one_reentries_total{cause="worker_removed"} 1.0' in metrics
    assert 'phase_one_reentries_total{cause="decoder_lost"} 0.0' in metrics


async def test_removal_is_logged_as_one_and_not_as_a_loss(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await control(cluster, "DELETE", "/d0?force=1")
    lines = [record for record in caplog.records if "worker d0" in record.getMessage()]
    assert [line.getMessage() for line in lines] == ["worker d0 removed"]
    (line,) = lines
    assert (line.__dict__["event"], line.__dict__["fields"]["state"]) == (
        "worker_removed",
        "removed",
    )
    assert (await cluster.request("GET", "/health")).json()["workers"].keys() == {"p0", "d1"}


async def test_a_drain_is_logged_with_the_state_it_leads_to(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await control(cluster, "POST", "/d0/drain")
    await control(cluster, "POST", "/d0/undrain")
    lines = [record.__dict__ for record in caplog.records if "fields" in record.__dict__]
    assert [(line["event"], line["fields"]["state"]) for line in lines] == [
        ("worker_draining", "draining"),
        ("worker_undrained", "up"),
    ]


async def test_undrain_calls_a_removal_off(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.1
    running = await under_way(cluster, "a")
    await control(cluster, "DELETE", "/d0?timeout_s=0")
    assert (await control(cluster, "POST", "/d0/undrain")).json()["state"] == "up"
    await running
    await asyncio.sleep(0.2)
    assert (await control(cluster, "GET", "/d0")).status == 200


async def test_worker_of_a_removed_ones_name_is_another_one(cluster: Cluster) -> None:
    await cluster.chat("hello")
    old = cluster["d0"]
    await control(cluster, "DELETE", "/d0")
    async with FakeWorker("decode", old.rendezvous).serve() as newcomer:
        await control(cluster, "POST", "", {"id": "d0", "tier": "d0", "port": newcomer.port})
        await cluster.until_met("d0")
        answer = await cluster.chat("hello", "the answer", "more")
        assert answer.headers["x-conserve-reason"] == "drained"
        assert len(old.turns) == 1


@pytest.mark.parametrize("path", ["/d0/drain", "/d0"])
async def test_waiting_time_must_be_a_number(cluster: Cluster, path: str) -> None:
    method = "POST" if path.endswith("drain") else "DELETE"
    answer = await control(cluster, method, f"{path}?timeout_s=soon")
    assert answer.status == 400
    assert "between 0 and 3600" in answer.json()["error"]["message"]
    assert (await control(cluster, "GET", "/d0")).json()["state"] == "up"


async def test_router_stops_while_a_drain_waits() -> None:
    async with a_cluster() as cluster:
        cluster["d0"].faults.delay_s = cluster["d1"].faults.delay_s = 9.0
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": []})
        await cluster.until(lambda: bool(cluster["d0"].turns))
        waiting = asyncio.ensure_future(control(cluster, "POST", "/d0/drain?timeout_s=60"))
        await asyncio.sleep(0.05)
        client.close()
    waiting.cancel()
