"""More than the router can take, over the wire: who waits, who is refused, and what they hear."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.ids import TenantId
from conserve_sglang.core.tier import AuthSettings, Overload
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import Cluster, a_cluster

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}
ONE_AT_A_TIME = Overload(max_prefill_backlog_tokens=1, max_phase_one_turns=3)


async def test_turns_wait_in_the_router_and_not_in_the_prefiller() -> None:
    async with a_cluster(overload=ONE_AT_A_TIME) as cluster:
        cluster["p0"].faults.delay_s = 0.05
        asked = [asyncio.ensure_future(cluster.chat("hello", name=f"c{n}")) for n in range(3)]
        await cluster.until(lambda: len(cluster["p0"].turns) == 1)
        assert cluster.service.brain.dispatcher.num_queued == 2
        assert {answer.status for answer in await asyncio.gather(*asked)} == {200}


async def test_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    async with a_cluster(overload=ONE_AT_A_TIME) as cluster:
        cluster["p0"].faults.delay_s = 0.2
        asked = [asyncio.ensure_future(cluster.chat("hello", name=f"c{n}")) for n in range(8)]
        answers = await asyncio.gather(*asked)
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) == 4, "one is prefilled, three wait"
        for answer in refused:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")


async def test_client_may_ask_for_a_shorter_deadline() -> None:
    async with a_cluster(overload=ONE_AT_A_TIME) as cluster:
        cluster["p0"].faults.delay_s = 0.5
        first = asyncio.ensure_future(cluster.chat("hello", name="first"))
        await cluster.until(lambda: bool(cluster["p0"].turns))
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await cluster.post(CHAT, BODY, {"x-conserve-deadline-ms": "50"})
        assert 0.04 < loop.time() - began < 0.4
        assert (answer.status, answer.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await first).status == 200
        assert len(cluster["p0"].turns) == 1, "the late one never reached a worker"


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
async def test_deadline_bounds_the_wait_and_not_the_answer(cluster: Cluster, path: str) -> None:
    for worker in cluster.workers.values():
        worker.faults.delay_s = 0.3
    body = {**BODY, "model": "tiny", "max_tokens": 5, "input": "hello"}
    answer = await cluster.post(path, body, {"x-conserve-deadline-ms": "50"})
    assert answer.status == 200


async def test_deadline_cannot_lengthen_the_wait() -> None:
    async with a_cluster(overload=ONE_AT_A_TIME, queue_timeout_s=0.1) as cluster:
        cluster["p0"].faults.delay_s = 0.5
        first = asyncio.ensure_future(cluster.chat("hello", name="first"))
        await cluster.until(lambda: bool(cluster["p0"].turns))
        answer = await cluster.post(CHAT, BODY, {"x-conserve-deadline-ms": "60000"})
        assert (answer.status, answer.json()["error"]["code"]) == (503, "queue_timeout")
        assert (await first).status == 200


async def test_deadline_without_any_decoder_is_a_503_too() -> None:
    async with a_cluster() as cluster:
        for name in ("d0", "d1"):
            await cluster[name].stop()
        await cluster.until(lambda: not cluster.service.fleet.num_decoders_up)
        answer = await cluster.post(CHAT, BODY, {"x-conserve-deadline-ms": "50"})
        assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")
        assert int(answer.headers["retry-after"]) >= 1


async def test_deadline_header_ends_at_the_router(cluster: Cluster) -> None:
    answer = await cluster.post(CHAT, BODY, {"x-conserve-deadline-ms": "5000"})
    assert answer.status == 200
    for worker in cluster.workers.values():
        assert not any("x-conserve-deadline-ms" in seen.headers for seen in worker.turns)


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "9999999999", ""])
async def test_deadline_that_is_no_number_is_refused(cluster: Cluster, value: str) -> None:
    answer = await cluster.post(CHAT, BODY, {"x-conserve-deadline-ms": value})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_deadline")
    assert (await cluster.post(CHAT, BODY)).status == 200


async def test_tenant_with_one_turn_overtakes_anothers_burst(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name) for name in ("a", "b")}
    bounds = Overload(max_prefill_backlog_tokens=1)
    settings: dict[str, Any] = {"auth": AuthSettings(keys_file=str(file)), "overload": bounds}
    async with a_cluster(**settings) as cluster:
        cluster["p0"].faults.delay_s = 0.02
        order: list[str] = []

        async def ask(tenant: str, number: int) -> None:
            headers = {
                "authorization": f"Bearer {keys[tenant]}",
                "x-conversation-id": f"{tenant}{number}",
            }
            assert (await cluster.post(CHAT, BODY, headers)).status == 200
            order.append(tenant)

        burst = [asyncio.ensure_future(ask("a", number)) for number in range(12)]
        await cluster.until(lambda: cluster.service.brain.dispatcher.num_queued == 11)
        await ask("b", 0)
        assert len(order) <= 4
        await asyncio.gather(*burst)


async def test_weights_of_the_key_file_reach_the_dispatcher_when_it_is_read_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.yaml"
    new_key(file, "a")
    async with a_cluster(auth=AuthSettings(keys_file=str(file))) as cluster:
        weight = cluster.service.brain.dispatcher._conversations.tenant(TenantId("a"))
        assert weight.weight == 1.0
        text = file.read_text()
        file.write_text(text.replace("weight: 1.0", "weight: 4.0"))
        assert file.read_text() != text
        cluster.service.reload_keys()
        assert weight.weight == 4.0


async def test_new_conversations_push_out_the_longest_idle() -> None:
    async with a_cluster(overload=Overload(max_conversations=3)) as cluster:
        for number in range(6):
            assert (await cluster.chat("hello", name=f"c{number}")).status == 200
        assert cluster.service.brain.dispatcher.num_conversations == 3
        assert len(cluster.service.brain.conversations) == 3
        decoders = (cluster["d0"], cluster["d1"])
        await cluster.until(lambda: sum(len(each.closed_sessions) for each in decoders) == 3)
        gone = await cluster.request("GET", "/v1/conversations/c0")
        assert gone.status == 404
