"""Turns through the router: phase 1 over prefiller and decoder, tail turns on the pin."""

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.router_cluster import Cluster, a_cluster

STEERING: dict[str, Any] = {
    "bootstrap_host": "10.0.0.1",
    "bootstrap_port": 1,
    "bootstrap_room": 7,
    "session_id": "another's",
    "session_params": {"id": "x"},
    "rid": "mine",
    "routing_key": "conserve-local max_uncached=999999999 min_cached=0",
    "routed_dp_rank": 1,
    "disagg_prefill_dp_rank": 1,
    "data_parallel_rank": 1,
}


async def test_first_turn_goes_to_prefiller_and_decoder_with_one_room(cluster: Cluster) -> None:
    answer = await cluster.chat("hello")
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "the answer"
    (prefill,) = cluster["p0"].turns
    (decode,) = cluster["d0"].turns
    assert prefill.body["bootstrap_room"] == decode.body["bootstrap_room"]
    assert 0 < prefill.body["bootstrap_room"] < 2**63
    assert decode.body["bootstrap_host"] == "127.0.0.1"
    assert decode.body["bootstrap_port"] == cluster["p0"].bootstrap_port
    assert "session_id" in decode.body
    assert "session_id" not in prefill.body


async def test_later_turns_go_to_the_pinned_decoder_alone(cluster: Cluster) -> None:
    await cluster.chat("hello")
    answer = await cluster.chat("hello", "the answer", "more")
    assert answer.status == 200
    assert len(cluster["p0"].turns) == 1
    first, second = cluster["d0"].turns
    assert not cluster["d1"].turns
    assert "bootstrap_room" not in second.body
    assert second.headers["x-smg-routing-key"].startswith("conserve-local ")
    assert second.body["session_id"] == first.body["session_id"]


async def test_native_tail_turn_is_marked_in_the_body(cluster: Cluster) -> None:
    headers = {"x-conversation-id": "c"}
    await cluster.post("/generate", {"input_ids": [65] * 300}, headers)
    answer = await cluster.post("/generate", {"input_ids": [65] * 310}, headers)
    assert answer.json()["text"] == "the answer"
    assert cluster["d0"].turns[1].body["routing_key"].startswith("conserve-local ")


async def test_two_conversations_go_to_two_decoders(cluster: Cluster) -> None:
    await cluster.chat("hello", name="a")
    await cluster.chat("hello", name="b")
    assert len(cluster["d0"].turns) == len(cluster["d1"].turns) == 1


async def test_body_reaches_the_workers_byte_for_byte(cluster: Cluster) -> None:
    raw = (
        b'{"model": "tiny",  "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],'
        b'"temperature": 1.50, "seed":123456789012345678901234567890, "x": [1,  2]}'
    )
    await cluster.post("/v1/chat/completions", raw, {"x-conversation-id": "c"})
    assert cluster["p0"].turns[0].raw.endswith(raw[1:])
    assert cluster["d0"].turns[0].raw.endswith(raw[1:])


async def test_steering_fields_of_a_client_are_dropped(cluster: Cluster) -> None:
    await cluster.chat("hello", temperature=0.5, **STEERING)
    await cluster.chat("hello", "the answer", "more", **STEERING)
    for seen in (*cluster["p0"].turns, *cluster["d0"].turns):
        for name, value in STEERING.items():
            assert seen.body.get(name) != value, name
        assert seen.body.get("temperature", 0.5) == 0.5


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[{"role":"user","content":"x"}],"bootstrap_room":7,"bootstrap_room":8}',
        b'{"messages":[{"role":"user","content":"x"}],"\\u0062ootstrap_room":7}',
        b'{"messages":[{"role":"user","content":"x"}],"sess\\u0069on_id":"another\'s"}',
        b' {"rout\\u0069ng_key":"a","messages":[{"role":"user","content":"x"}]}',
    ],
)
async def test_escaped_or_doubled_steering_keys_do_not_win(cluster: Cluster, raw: bytes) -> None:
    await cluster.post("/v1/chat/completions", raw, {"x-conversation-id": "c"})
    (seen,) = cluster["d0"].turns
    assert seen.body["bootstrap_room"] == cluster["d0"].rendezvous.rooms_used[0]
    assert seen.body["session_id"].startswith("conv-")
    assert "routing_key" not in seen.body


async def test_steering_headers_of_a_client_are_dropped(cluster: Cluster) -> None:
    headers = {
        "x-conversation-id": "c",
        "X-SMG-Routing-Key": "conserve-local max_uncached=9 min_cached=0",
        "x-smg-target-worker": "1",
        "X-Data-Parallel-Rank": "1",
        "x-override-bootstrap-room": "3",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "x-kept": "yes",
        "authorization": "Bearer k",
    }
    await cluster.post("/v1/chat/completions", {"messages": []}, headers)
    (seen,) = cluster["d0"].turns
    passed = {name for name in seen.headers if name.startswith("x-")}
    assert passed == {"x-kept", "x-request-id"}
    assert seen.headers["authorization"] == "Bearer k"


async def test_stream_is_passed_on_and_hides_the_usage_the_client_did_not_ask_for(
    cluster: Cluster,
) -> None:
    answer = await cluster.chat("hello", stream=True)
    assert cluster["d0"].turns[0].body["stream_options"] == {"include_usage": True}
    assert answer.events[-1] == "[DONE]"
    assert all(event["choices"] for event in answer.events[:-1])
    texts = [event["choices"][0]["delta"]["content"] for event in answer.events[:-1]]
    assert "".join(texts) == "the answer"
    assert cluster.service.door.metrics.prompt_tokens == len("hello")


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_usage_stays_hidden_however_events_are_split(cluster: Cluster, size: int) -> None:
    cluster["d0"].faults.split_bytes = size
    answer = await cluster.chat("hello", stream=True)
    assert answer.events[-1] == "[DONE]"
    assert b"prompt_tokens" not in answer.body
    assert cluster.service.door.metrics.output_tokens == len("the answer")


async def test_usage_asked_for_is_shown(cluster: Cluster) -> None:
    answer = await cluster.chat("hello", stream=True, stream_options={"include_usage": True})
    assert answer.events[-2]["usage"]["prompt_tokens"] == 5
    assert cluster.service.door.metrics.prompt_tokens == 5


async def test_usage_declined_is_hidden_and_other_stream_options_stay(cluster: Cluster) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    answer = await cluster.chat("hello", stream=True, stream_options=options)
    sent = cluster["d0"].turns[0].body["stream_options"]
    assert sent == {"include_usage": True, "continuous_usage_stats": True}
    assert all(event["choices"] for event in answer.events[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_every_choice_of_several_reaches_the_client(stream: bool) -> None:
    async with a_cluster({"m0": "null"}, policy="colocated") as cluster:
        first = await cluster.chat("hello", name=None, stream=stream, n=3)
        assert [seen.body["n"] for seen in cluster["m0"].turns] == [3]
        said = dict.fromkeys(range(3), "")
        for part in first.events[:-1] if stream else [first.json()]:
            for choice in part["choices"]:
                said[choice["index"]] += choice["delta" if stream else "message"]["content"]
        assert said == dict.fromkeys(range(3), "the answer")
        # Its client goes on with one of them; the first is where the history is filed.
        second = await cluster.chat("hello", "the answer", "more", name=None, stream=stream, n=3)
        assert second.headers["x-conversation-id"] == first.headers["x-conversation-id"]


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
async def test_other_endpoints_stream_too(cluster: Cluster, path: str) -> None:
    field = "prompt" if path == "/v1/completions" else "text"
    body = {field: "hello", "stream": True}
    answer = await cluster.post(path, body, {"x-conversation-id": "c"})
    last = answer.events[-2]
    if path == "/generate":
        assert last["text"] == "the answer"
    else:
        assert last["choices"][0]["text"] == " answer"
    assert cluster.service.door.metrics.prompt_tokens == 5


async def test_answer_names_its_conversation_and_its_workers(cluster: Cluster) -> None:
    answer = await cluster.chat("hello", name="task 7")
    assert answer.headers["x-conversation-id"] == "task 7"
    assert answer.headers["x-conserve-decoder"] == "d0"
    assert answer.headers["x-conserve-prefiller"] == "p0"


async def test_mixed_worker_gets_the_plain_body() -> None:
    async with a_cluster({"m0": "null"}, policy="colocated") as cluster:
        answer = await cluster.chat("hello")
        assert answer.status == 200
        (seen,) = cluster["m0"].turns
        assert set(seen.body) == {"model", "messages", "stream"}
        assert "x-smg-routing-key" not in seen.headers


async def test_stock_pd_moves_every_turn_and_ties_nothing_to_a_session() -> None:
    modes = {"p0": "prefill", "d0": "decode"}
    async with a_cluster(modes, policy="stock-pd", without_plugin=("d0",)) as cluster:
        await cluster.chat("hello")
        await cluster.chat("hello", "the answer", "more")
        assert len(cluster["p0"].turns) == 2
        rooms = [seen.body["bootstrap_room"] for seen in cluster["d0"].turns]
        assert len(set(rooms)) == 2
        assert "session_id" not in cluster["d0"].turns[0].body


async def test_connections_to_workers_are_kept_alive(cluster: Cluster) -> None:
    before = cluster["d0"].num_connections
    for _ in range(5):
        await cluster.chat("hello")
    assert cluster["d0"].num_connections - before <= 1


async def test_sixteen_conversations_at_once_keep_their_pins(cluster: Cluster) -> None:
    async def play(name: str) -> None:
        said = [name * 3]
        for _ in range(4):
            answer = await cluster.chat(*said, name=name, stream=True)
            assert answer.events[-1] == "[DONE]"
            said += ["the answer", f"{name} again"]

    await asyncio.gather(*(play(f"n{n}") for n in range(16)))
    assert len(cluster["p0"].turns) == 16
    decoders: dict[str, set[str]] = {}
    for name in ("d0", "d1"):
        for seen in cluster[name].turns:
            decoders.setdefault(seen.body["session_id"], set()).add(name)
    assert len(decoders) == 16
    assert all(len(pins) == 1 for pins in decoders.values())


async def test_large_body_goes_through(cluster: Cluster) -> None:
    text = "lorem ipsum " * 10_000
    answer = await cluster.chat(text)
    assert answer.status == 200
    assert json.loads(cluster["p0"].turns[0].raw)["messages"][0]["content"] == text


async def test_long_append_goes_through_phase_one_again(cluster: Cluster) -> None:
    await cluster.chat("hello")
    await cluster.chat("hello", "the answer", "x" * 60_000)
    assert len(cluster["p0"].turns) == 2
    assert len(cluster["d0"].turns) == 2
