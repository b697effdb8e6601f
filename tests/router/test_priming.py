"""Turns that ask for several choices where KV is moved: first the KV moves, then they are asked."""

import asyncio
from typing import Any

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.tier import EnergySettings
from conserve_sglang.core.turn_tag import tag_of
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.router_cluster import Answer, Cluster, a_cluster
from tests.fakes.router_family import a_family
from tests.fakes.sglang_worker import Seen
from tests.router.test_meter import histogram

CHAT, TEXT, NATIVE = "/v1/chat/completions", "/v1/completions", "/generate"
NAMED = {"x-conversation-id": "c"}
either_way = pytest.mark.parametrize("stream", [False, True])
everywhere = pytest.mark.parametrize("path", [CHAT, TEXT, NATIVE])


def body_of(path: str, text: str = "hello", n: int = 3, **fields: Any) -> dict[str, Any]:
    """A turn for several choices whose prompt is `text`."""
    if path == CHAT:
        return {"messages": [{"role": "user", "content": text}], "n": n, **fields}
    if path == TEXT:
        return {"prompt": text, "n": n, **fields}
    return {"text": text, "sampling_params": {"n": n}, **fields}


def texts(answer: Answer, path: str, *, stream: bool) -> list[str]:
    """What each choice said."""
    said: dict[int, str] = {}
    if path == NATIVE:
        if stream:
            said = {each.get("index", 0): each["text"] for each in answer.events[:-1]}
        else:
            whole = answer.json()
            said = dict(
                enumerate(each["text"] for each in (whole if isinstance(whole, list) else [whole]))
            )
    else:
        for part in answer.events[:-1] if stream else [answer.json()]:
            for choice in part["choices"]:
                new = choice.get("text") or choice.get("delta", choice.get("message"))["content"]
                said[choice["index"]] = said.get(choice["index"], "") + new
    return [said[index] for index in sorted(said)]


def is_primer(seen: Seen) -> bool:
    return "bootstrap_room" in seen.body


@everywhere
@either_way
async def test_kv_moves_once_then_the_decoder_is_asked_alone(
    cluster: Cluster, path: str, stream: bool
) -> None:
    cluster["d0"].prefixes.clear()
    answer = await cluster.post(path, body_of(path, stream=stream), NAMED)
    assert (answer.status, texts(answer, path, stream=stream)) == (200, ["the answer"] * 3)
    assert answer.headers["x-conserve-prefiller"] == "p0"
    assert answer.headers["x-conserve-reason"] == "first_turn"
    (prefill,), (primer, asked) = cluster["p0"].turns, cluster["d0"].turns
    assert is_primer(primer)
    assert primer.body.pop("session_id") == asked.body.pop("session_id")
    assert primer.raw != prefill.raw
    assert primer.body == prefill.body
    key = asked.headers["x-smg-routing-key"]
    assert LocalLimits.from_routing_key(key) is not None
    asked.body.pop("routing_key", None)
    asked.body.pop("stream_options", None)
    assert asked.body == body_of(path, stream=stream)
    assert len(cluster["p0"].rendezvous.rooms_used) == 1
    metrics = cluster.service.door.metrics
    assert metrics.num_kv_transfers == sum(metrics.placements.values()) == 1
    assert metrics.turns[Outcome.ANSWERED] == sum(metrics.turns.values()) == 1
    assert (metrics.prompt_tokens, metrics.output_tokens) == (5, 30)
    assert metrics.cached_tokens == metrics.num_retries == 0
    assert histogram(cluster, "ttft", "prefill")[0] == 1
    assert histogram(cluster, "tbt", "prefill")[0] == 0


@everywhere
@either_way
@pytest.mark.parametrize("num", [1, 2])
async def test_conversation_goes_on_from_the_first_choice_where_its_kv_is(
    cluster: Cluster, path: str, stream: bool, num: int
) -> None:
    first = await cluster.post(path, body_of(path, "hello", stream=stream))
    more = body_of(path, "hellothe answermore", num, stream=stream)
    if path == CHAT:
        said = {"user": "hello", "assistant": "the answer"}
        more["messages"] = [{"role": who, "content": what} for who, what in said.items()]
        more["messages"].append({"role": "user", "content": "more"})
    answer = await cluster.post(path, more)
    assert texts(answer, path, stream=stream) == ["the answer"] * num
    assert answer.headers["x-conserve-reason"] == "pinned"
    assert answer.headers["x-conversation-id"] == first.headers["x-conversation-id"]
    assert len(cluster["p0"].turns) == 1


async def test_ledger_books_the_prompt_and_one_choice(cluster: Cluster) -> None:
    await cluster.chat("hello", n=3)
    load = cluster.service.brain.dispatcher.worker_load(WorkerId("d0"))
    assert load is not None
    assert (load.resident_tokens, load.reserved_tokens) == (5 + 10, 0)
    about = await cluster.request("GET", "/v1/conversations/c", cluster.service.control_port)
    assert about.json()["kv_transfers"] == 1


@either_way
@pytest.mark.parametrize("worker", ["p0", "d0"])
async def test_failing_worker_is_not_seen(cluster: Cluster, worker: str, stream: bool) -> None:
    cluster[worker].faults.statuses.append(500)
    answer = await cluster.chat("hello", n=2, stream=stream)
    assert texts(answer, CHAT, stream=stream) == ["the answer"] * 2
    metrics = cluster.service.door.metrics
    assert metrics.num_retries == metrics.num_kv_transfers == 1
    failed = {"p0": FailureCause.PREFILLER_FAILED, "d0": FailureCause.DECODER_FAILED}[worker]
    assert metrics.failures[failed] == sum(metrics.failures.values()) == 1


@either_way
async def test_kv_that_is_gone_again_is_moved_again(cluster: Cluster, stream: bool) -> None:
    cluster["d0"].faults.refusals.append("prefix_missing")
    answer = await cluster.chat("hello", n=2, stream=stream)
    assert texts(answer, CHAT, stream=stream) == ["the answer"] * 2
    assert [is_primer(seen) for seen in cluster["d0"].turns] == [True, False, True, False]
    assert cluster.service.door.metrics.failures[FailureCause.PREFIX_MISSING] == 1


async def test_full_queue_sends_the_turn_elsewhere_and_lets_the_kv_go(cluster: Cluster) -> None:
    cluster["d0"].faults.queue_is_full = True
    answer = await cluster.chat("hello", n=2)
    assert (answer.status, answer.headers["x-conserve-decoder"]) == (200, "d1")
    await cluster.until(lambda: len(cluster["d0"].closed_sessions) == 1)


async def test_decoder_that_dies_after_the_kv_came_costs_another_transfer(
    cluster: Cluster,
) -> None:
    cluster["d0"].faults.event_delay_s = 0.3
    asked = asyncio.ensure_future(cluster.chat("hello", n=2))
    cluster["d0"].faults.delay_s = 0.2
    await cluster.until(lambda: len(cluster["d0"].turns) == 2)
    await cluster["d0"].stop()
    answer = await asked
    assert texts(answer, CHAT, stream=False) == ["the answer"] * 2
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert len(cluster["p0"].turns) == 2


async def test_refused_request_is_its_clients(cluster: Cluster) -> None:
    cluster["d0"].faults.statuses.append(400)
    answer = await cluster.chat("hello", n=2)
    assert answer.status == 400
    assert "told to fail" in answer.json()["error"]["message"]
    assert len(cluster["d0"].turns) == 1
    assert cluster.service.door.executor.num_open_turns == 0


@either_way
@pytest.mark.parametrize("num_asked", [1, 2])
async def test_client_leaving_stops_what_runs(
    cluster: Cluster, num_asked: int, stream: bool
) -> None:
    cluster["p0"].faults.delay_s = 5.0 if num_asked == 1 else 0.1
    client = await cluster.connect()
    client.ask(CHAT, body_of(CHAT, stream=stream))
    await cluster.until(lambda: bool(cluster["p0"].turns and cluster["d0"].turns))
    if num_asked == 2:
        cluster["d0"].faults.delay_s = 5.0
        await cluster.until(lambda: len(cluster["d0"].turns) == 2)
    await asyncio.sleep(0.02)
    client.close()
    await cluster.until(lambda: cluster["d0"].turns[-1].was_aborted)
    if num_asked == 1:
        await cluster.until(lambda: cluster["p0"].turns[0].was_aborted)
    assert cluster.service.door.metrics.turns[Outcome.CLIENT_LEFT] == 1
    assert cluster.service.door.executor.num_open_turns == 0
    assert not any(x.reserved_tokens for x in cluster.service.brain.dispatcher.worker_loads())


async def test_lost_prefiller_aborts_the_priming(cluster: Cluster) -> None:
    cluster["p0"].faults.delay_s = 5.0
    asked = asyncio.ensure_future(cluster.chat("hello", n=2))
    await cluster.until(lambda: bool(cluster["p0"].turns and cluster["d0"].turns))
    await asyncio.sleep(0.02)
    cluster["p0"].faults.delay_s = 0.0
    await cluster.request("POST", "/admin/workers/p0/lost", cluster.service.control_port)
    assert texts(await asked, CHAT, stream=False) == ["the answer"] * 2
    assert cluster["d0"].turns[0].was_aborted


async def test_body_is_let_go_of_once_the_answer_has_begun(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.event_delay_s = 0.1
    turns = cluster.service.door.executor._turns
    asked = asyncio.ensure_future(cluster.chat("hello", n=2, stream=True))
    await cluster.until(lambda: any(turn.has_begun for turn in turns.values()))
    (turn,) = turns.values()
    assert turn.choices is not None
    assert (turn.choices._fields, turn.payload.rest) == ({}, b"")
    assert (await asked).status == 200


async def test_stream_that_breaks_off_ends_with_an_error_event(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    answer = await cluster.chat("hello", n=2, stream=True)
    assert answer.status == 200
    assert answer.events[-1]["error"]["code"]
    assert answer.events[:-1]
    assert not cluster["d1"].turns


async def test_native_stream_of_several_is_not_gone_on_with_as_one(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    answer = await cluster.post(NATIVE, body_of(NATIVE, stream=True), NAMED)
    assert "error" in answer.events[-1]
    assert not cluster["d1"].turns


async def test_decoders_that_take_no_turn_by_themselves_give_one_choice() -> None:
    modes = {"p0": "prefill", "d0": "decode"}
    async with a_cluster(modes, policy="stock-pd", without_plugin=("d0",)) as cluster:
        answer = await cluster.chat("hello", n=2)
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["param"]) == (400, "one_choice_only", "n")
        assert not cluster["p0"].turns
        assert not cluster["d0"].turns
        loads = cluster.service.brain.dispatcher.worker_loads()
        assert not any(load.reserved_tokens or load.backlog_tokens for load in loads)
        assert (await cluster.chat("hello", n=1)).status == 200


async def test_stock_pd_with_decoders_that_do_moves_the_kv_every_turn() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}, policy="stock-pd") as cluster:
        for said in (("hello",), ("hello", "the answer", "more")):
            assert (await cluster.chat(*said, n=2)).status == 200
        assert [is_primer(seen) for seen in cluster["d0"].turns] == [True, False] * 2


async def test_where_energy_is_read_every_request_is_tagged() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}, energy=EnergySettings()) as cluster:
        assert (await cluster.chat("hello", n=2)).status == 200
        seen = [*cluster["p0"].turns, *cluster["d0"].turns]
        tags = {tag_of(each.headers["x-smg-routing-key"]) for each in seen}
    assert len(seen) == 3
    assert len(tags) == 1
    assert None not in tags


async def test_every_front_primes() -> None:
    async with a_family() as family:
        answers = await asyncio.gather(*(family.chat("hello", name=f"c{n}", n=2) for n in range(8)))
        for answer in answers:
            assert texts(answer, CHAT, stream=False) == ["the answer"] * 2
        assert len(family["p0"].turns) == 8
        about = await family.request("GET", "/v1/conversations/c0", family.many.control_port)
        assert about.json()["kv_transfers"] == 1
