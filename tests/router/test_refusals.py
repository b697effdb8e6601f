"""What a decoder or prefiller refuses, and what of it a client gets to see."""

from typing import Any

import pytest

from tests.fakes.router_cluster import Cluster

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/generate": {"text": "hello"},
}


@pytest.mark.parametrize("reason", ["prefix_missing", "append_too_large"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_refused_local_turn_is_prefilled_again_unseen_by_the_client(
    cluster: Cluster, path: str, stream: bool, reason: str
) -> None:
    headers = {"x-conversation-id": "c"}
    await cluster.post(path, BODIES[path], headers)
    cluster["d0"].faults.refusals.append(reason)
    answer = await cluster.post(path, {**BODIES[path], "stream": stream}, headers)
    assert answer.status == 200
    assert b"conserve-refused" not in answer.body
    assert b"answer" in answer.body
    assert len(cluster["p0"].turns) == 2
    rooms = cluster["p0"].rendezvous.rooms_used
    assert len(set(rooms)) == 2


async def test_missing_prefix_is_noticed_by_the_decoder_and_repaired(cluster: Cluster) -> None:
    long = "x" * 1000
    await cluster.chat(long)
    cluster["d0"].resident.clear()  # as after /flush_cache
    answer = await cluster.chat(long, "the answer", "more")
    assert answer.status == 200
    assert len(cluster["p0"].turns) == 2
    assert cluster.service.door.metrics.num_kv_misses == 1


@pytest.mark.parametrize("status", [400, 422])
async def test_worker_refusing_the_request_is_passed_on_in_openai_shape(
    cluster: Cluster, status: int
) -> None:
    cluster["d0"].faults.statuses.append(status)
    cluster["p0"].faults.statuses.append(status)
    answer = await cluster.chat("hello")
    assert answer.status == status
    assert answer.json()["error"]["message"] == "told to fail"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await cluster.chat("hello")).status == 200


async def test_prefiller_refusing_alone_does_not_leave_the_decoder_waiting(
    cluster: Cluster,
) -> None:
    cluster["p0"].faults.statuses.append(400)
    answer = await cluster.chat("hello")
    assert answer.status == 400
    await cluster.until(lambda: cluster["d0"].turns[0].was_aborted)


async def test_unmarked_turn_never_happens(cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.chat("hello")
    for seen in cluster["d0"].turns:
        assert "bootstrap_room" in seen.body or "x-smg-routing-key" in seen.headers
