"""A decoder is lost in the middle of a stream: its client gets the rest from another."""

import asyncio
from typing import Any

import pytest

from conserve_sglang.core.continuation import Continuation
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.router_cluster import Answer, Client, Cluster, a_cluster

ANSWER = "one two three four five six"
CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "count"}]},
    COMPLETION: {"prompt": "count"},
    GENERATE: {"text": "count"},
}
every_endpoint = pytest.mark.parametrize("path", BODIES)


def text_of(answer: Answer) -> str:
    """All that a client has read."""
    text = ""
    for event in answer.events:
        if event == "[DONE]" or "error" in event:
            continue
        if "meta_info" in event:
            text = event["text"]
        for choice in event.get("choices", []):
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text


async def asked(
    cluster: Cluster, path: str, name: str = "c", /, **fields: Any
) -> "tuple[Client, str]":
    """A stream has begun; its client, and the decoder it runs on."""
    for worker in cluster.workers.values():
        worker.answer = ANSWER
    client = await cluster.connect()
    client.ask(path, {**BODIES[path], "stream": True, **fields}, {"x-conversation-id": name})
    _, headers = await client.head()
    return client, headers["x-conserve-decoder"]


async def rest(client: Client) -> Answer:
    body, is_whole = await client._chunks()
    return Answer(200, {}, body, is_whole)


def resumption(cluster: Cluster, worker: str) -> Continuation:
    """What a worker was told to go on with."""
    continuation = Continuation.from_rid(cluster[worker].turns[-1].body.get("rid"))
    assert continuation is not None
    return continuation


@every_endpoint
@pytest.mark.parametrize("cut", range(1, 8))
async def test_stream_goes_on_at_another_decoder(path: str, cut: int) -> None:
    async with a_cluster() as cluster:
        cluster["d0"].faults.cut_after_events = cut
        client, decoder = await asked(cluster, path)
        answer = await rest(client)
        assert decoder == "d0"
        assert text_of(answer) == ANSWER
        assert answer.events[-1] == "[DONE]"
        assert answer.is_whole
        assert b":=" not in answer.body
        heads = {(e.get("id"), e.get("created")) for e in answer.events[:-1]}
        assert len(heads) == 1
        assert cluster.service.door.metrics.turns[Outcome.ANSWERED] == 1


async def test_other_pair_gets_the_body_with_the_tokens_sent(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 3
    client, _ = await asked(cluster, CHAT)
    await rest(client)
    continuation = resumption(cluster, "d1")
    assert bytes(continuation.token_ids) == b"one two three"
    assert continuation.num_events == 3
    assert resumption(cluster, "p0") == continuation
    assert len(cluster["p0"].turns) == 2
    assert cluster["d1"].turns[0].body["messages"] == BODIES[CHAT]["messages"]
    rooms = [worker.turns[-1].body["bootstrap_room"] for worker in (cluster["p0"], cluster["d1"])]
    assert rooms[0] == rooms[1]


async def test_events_in_pieces_are_told_as_well(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 4
    for name in ("d0", "d1"):
        cluster[name].faults.split_bytes = 7
    client, _ = await asked(cluster, CHAT)
    answer = await rest(client)
    assert text_of(answer) == ANSWER
    assert resumption(cluster, "d1").num_events == 4


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_usage_at_the_end_counts_the_whole_answer(cluster: Cluster, path: str) -> None:
    cluster["d0"].faults.cut_after_events = 2
    client, _ = await asked(cluster, path, stream_options={"include_usage": True})
    answer = await rest(client)
    usages = [e["usage"] for e in answer.events[:-1] if not e["choices"]]
    assert [usage["completion_tokens"] for usage in usages] == [len(ANSWER)]
    view = cluster.service.door.metrics.output_tokens
    assert view == len(ANSWER)


async def test_next_turn_is_pinned_to_the_decoder_that_went_on(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    client, _ = await asked(cluster, CHAT)
    await rest(client)
    answer = await cluster.chat("count", ANSWER, "more")
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert answer.headers["x-conserve-reason"] == "pinned"
    shown = await cluster.request("GET", "/v1/conversations/c")
    assert shown.json()["decoder"] == "d1"
    assert len(cluster["p0"].turns) == 2


async def test_killed_decoder_under_a_quiet_stream_is_replaced(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 5.0
    client, _ = await asked(cluster, CHAT)
    await cluster["d0"].stop()
    assert text_of(await rest(client)) == ANSWER


async def test_stream_goes_on_as_often_as_the_budget_allows() -> None:
    modes = {"p0": "prefill", **{f"d{n}": "decode" for n in range(4)}}
    async with a_cluster(modes, max_continuations=2) as cluster:
        for name in ("d0", "d1", "d2", "d3"):
            cluster[name].faults.cut_after_events = 2
        client, _ = await asked(cluster, CHAT)
        answer = await rest(client)
        assert text_of(answer) == ANSWER
        assert sum(len(cluster[name].turns) for name in ("d0", "d1", "d2", "d3")) == 3


async def test_spent_budget_is_an_error_event() -> None:
    modes = {"p0": "prefill", **{f"d{n}": "decode" for n in range(4)}}
    async with a_cluster(modes, max_continuations=1) as cluster:
        for name in ("d0", "d1", "d2", "d3"):
            cluster[name].faults.cut_after_events = 2
        client, _ = await asked(cluster, CHAT)
        answer = await rest(client)
        assert text_of(answer) == "one two three four"
        assert answer.events[-1]["error"]["code"] == "workers_failed"
        assert cluster.service.door.metrics.turns[Outcome.BROKEN_OFF] == 1
        assert cluster.service.door.executor.num_open_turns == 0


async def test_continuations_can_be_switched_off() -> None:
    async with a_cluster(max_continuations=0) as cluster:
        cluster["d0"].faults.cut_after_events = 2
        client, _ = await asked(cluster, CHAT)
        answer = await rest(client)
        assert answer.events[-1]["error"]["code"] == "answer_broken_off"
        assert "x-conserve-tell" not in cluster["d0"].turns[0].headers


@pytest.mark.parametrize("stock", ["p0", "d0", "d1"])
@every_endpoint
async def test_pair_that_cannot_go_on_is_an_error_event(path: str, stock: str) -> None:
    async with a_cluster(without_plugin=(stock,), policy="stock-pd") as cluster:
        cluster["d0"].faults.cut_after_events = 2
        client, decoder = await asked(cluster, path)
        answer = await rest(client)
        assert decoder == "d0"
        assert answer.events[-1]["error"]["code"] == "answer_broken_off"
        assert cluster.service.door.executor.num_open_turns == 0


async def test_several_choices_are_not_gone_on_with() -> None:
    async with a_cluster({"m0": "null", "m1": "null"}, policy="colocated") as cluster:
        cluster["m0"].faults.cut_after_events = 2
        client, _ = await asked(cluster, CHAT, n=2)
        answer = await rest(client)
    assert answer.events[-1]["error"]["code"] == "answer_broken_off"


async def test_failing_continuation_is_tried_again(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    client, _ = await asked(cluster, CHAT)
    cluster["d1"].faults.statuses.append(500)
    assert text_of(await rest(client)) == ANSWER


async def test_refused_continuation_is_an_error_event(cluster: Cluster) -> None:
    cluster["d1"].faults.statuses.append(400)
    cluster["d0"].faults.cut_after_events = 2
    client, _ = await asked(cluster, CHAT)
    answer = await rest(client)
    assert answer.events[-1]["error"]["code"] == "answer_broken_off"


async def test_continuation_waits_for_a_decoder() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        cluster["d0"].faults.event_delay_s = 0.2
        client, _ = await asked(cluster, CHAT)
        port = cluster["d0"].port
        await cluster["d0"].stop()
        await asyncio.sleep(0.2)
        await cluster["d0"].start(port)
        assert text_of(await rest(client)) == ANSWER


async def test_continuation_that_waits_too_long_is_an_error_event() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}, queue_timeout_s=0.3) as cluster:
        cluster["d0"].faults.event_delay_s = 0.2
        client, _ = await asked(cluster, CHAT)
        await cluster["d0"].stop()
        answer = await rest(client)
        assert answer.events[-1]["error"]["code"] == "no_worker"
        assert cluster.service.door.metrics.turns[Outcome.BROKEN_OFF] == 1


async def test_client_leaving_while_its_continuation_waits_is_noticed() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        cluster["d0"].faults.event_delay_s = 0.2
        client, _ = await asked(cluster, CHAT)
        await cluster["d0"].stop()
        await cluster.until(lambda: cluster.service.brain.dispatcher.num_queued == 1)
        client.close()
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 0)
        assert cluster.service.brain.dispatcher.num_queued == 0


async def test_stream_that_lacks_only_its_end_is_ended_by_the_router(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = len(ANSWER.split()) + 1
    client, _ = await asked(cluster, CHAT)
    answer = await rest(client)
    assert answer.events[-1] == "[DONE]"
    assert not cluster["d1"].turns


async def test_interruptions_and_continuations_are_counted(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    client, _ = await asked(cluster, CHAT)
    await rest(client)
    text = (await cluster.request("GET", "/metrics", cluster.service.control_port)).body.decode()
    assert "conserve_router_interruptions_total 1.0" in text
    assert "conserve_router_continuations_total 1.0" in text
    assert "conserve_router_kv_transfers_total 2.0" in text


async def test_history_of_a_continued_answer_is_recognised(cluster: Cluster) -> None:
    cluster["d0"].faults.cut_after_events = 2
    for name in ("d0", "d1"):
        cluster[name].answer = ANSWER
    first = await cluster.chat("count", name=None, stream=True)
    assert text_of(first) == ANSWER
    second = await cluster.chat("count", ANSWER, "more", name=None)
    assert second.headers["x-conversation-id"] == first.headers["x-conversation-id"]
    assert second.headers["x-conserve-reason"] == "pinned"
