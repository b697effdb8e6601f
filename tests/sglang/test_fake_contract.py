"""The fake worker of the router's tests answers as the real server does, where a router looks."""

import asyncio
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.router.choices import Choices
from conserve_sglang.router.verdict import error_in, failure_cause
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import is_ready, read_facts
from conserve_sglang.workers.sse import UsageFilter
from conserve_sglang.workers.usage import usage_in
from tests.fakes.router_cluster import Answer, Client
from tests.fakes.sglang_worker import FakeWorker, Rendezvous
from tests.sglang.cluster import Cluster

pytestmark = pytest.mark.sglang

GREEDY = {"temperature": 0, "max_tokens": 5}
TURNS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello there"}], **GREEDY},
    "/v1/completions": {"prompt": "hello there", **GREEDY},
    "/generate": {
        "text": "hello there",
        "sampling_params": {"temperature": 0, "max_new_tokens": 5},
    },
}
KEEPS_NOTHING = LocalLimits(max_uncached=2000, min_cached=1500).to_routing_key()
every_endpoint = pytest.mark.parametrize("path", TURNS)
either_way = pytest.mark.parametrize("stream", [False, True])


@dataclass(frozen=True)
class Pair:
    """The same request, answered by both."""

    real: Answer
    fake: Answer


async def ask(port: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    client.ask(path, body, headers)
    try:
        return await asyncio.wait_for(client.answer(), 60)
    finally:
        client.close()


async def ask_both(cluster: Cluster, mode: str, path: str, stream: bool, **members: Any) -> Pair:
    name = {"decode": "d0", "null": "ref"}[mode]
    body = {**TURNS[path], "stream": stream, **members}
    key = members.get("routing_key")
    headers = {} if key is None else {"x-smg-routing-key": key}
    async with FakeWorker(mode, Rendezvous()).serve() as fake:
        return Pair(
            await ask(cluster.servers[name].port, path, body, headers),
            await ask(fake.port, path, body, headers),
        )


def framing(answer: Answer) -> tuple[int, str, bool]:
    kind = answer.headers["content-type"].partition(";")[0]
    return answer.status, kind, "transfer-encoding" in answer.headers


def verdict(answer: Answer) -> FailureCause | None:
    if answer.status != 200:
        return failure_cause(answer.status, answer.body)
    error = error_in(answer.body)
    return None if error is None else failure_cause(error[0], error[1].encode())


@every_endpoint
@either_way
async def test_refused_local_turn_looks_the_same(cluster: Cluster, path: str, stream: bool) -> None:
    pair = await ask_both(cluster, "decode", path, stream, routing_key=KEEPS_NOTHING)
    assert framing(pair.real) == framing(pair.fake)
    assert verdict(pair.real) is verdict(pair.fake) is FailureCause.PREFIX_MISSING


def several(path: str) -> dict[str, Any]:
    """The member that asks for two choices."""
    params = TURNS[path].get("sampling_params")
    return {"n": 2} if params is None else {"sampling_params": {**params, "n": 2}}


@every_endpoint
@either_way
async def test_refused_local_turn_for_several_choices_looks_the_same(
    cluster: Cluster, path: str, stream: bool
) -> None:
    asked = {"routing_key": KEEPS_NOTHING, **several(path)}
    pair = await ask_both(cluster, "decode", path, stream, **asked)
    assert framing(pair.real) == framing(pair.fake)
    assert verdict(pair.real) is verdict(pair.fake) is FailureCause.PREFIX_MISSING


@every_endpoint
@either_way
async def test_several_choices_look_the_same(cluster: Cluster, path: str, stream: bool) -> None:
    options = {} if path == "/generate" else {"stream_options": {"include_usage": True}}
    pair = await ask_both(cluster, "null", path, stream, **several(path), **options)
    assert framing(pair.real) == framing(pair.fake)
    counts = []
    for answer in (pair.real, pair.fake):
        if path == "/generate":
            parts = answer.events[:-1] if stream else answer.json()
            indices = {part.get("index") for part in parts}
            assert {"text", "output_ids", "meta_info"} <= set(parts[0])
        else:
            parts = answer.events[:-1] if stream else [answer.json()]
            indices = {choice["index"] for part in parts for choice in part["choices"]}
        assert indices == ({None} if path == "/generate" and not stream else {0, 1})
        usage = usage_in(answer.body)
        assert usage is not None
        said = Choices(2, {}).counted(
            usage, answer.body if path == "/generate" else None, is_stream=stream
        )
        counts.append(said.output_tokens)
    assert counts == [2 * 5, 2 * len("the answer")]


@every_endpoint
async def test_unmarked_turn_on_a_decoder_is_refused_by_both(cluster: Cluster, path: str) -> None:
    pair = await ask_both(cluster, "decode", path, False)
    assert pair.real.status == pair.fake.status == 400


@every_endpoint
async def test_whole_answer_has_its_counts_where_they_are_looked_for(
    cluster: Cluster, path: str
) -> None:
    pair = await ask_both(cluster, "null", path, False)
    assert framing(pair.real) == framing(pair.fake)
    assert set(pair.fake.json()) <= set(pair.real.json())
    real = usage_in(pair.real.body)
    assert real is not None
    assert real.output_tokens == 5
    assert usage_in(pair.fake.body) is not None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_event_is_the_last_but_one_and_can_be_held_back(
    cluster: Cluster, path: str
) -> None:
    options = {"include_usage": True}
    pair = await ask_both(cluster, "null", path, True, stream_options=options)
    assert framing(pair.real) == framing(pair.fake)
    for answer in (pair.real, pair.fake):
        *_, counted, done = answer.events
        assert (counted["choices"], done) == ([], "[DONE]")
        filtered = UsageFilter()
        passed = filtered.feed(answer.body) + filtered.flush()
        assert filtered.usage is not None
        assert passed.count(b"data:") == len(answer.events) - 1
        assert passed.endswith(b"data: [DONE]\n\n")


async def test_native_stream_repeats_all_so_far_with_its_counts(cluster: Cluster) -> None:
    pair = await ask_both(cluster, "null", "/generate", True)
    assert framing(pair.real) == framing(pair.fake)
    for answer in (pair.real, pair.fake):
        *events, done = answer.events
        assert done == "[DONE]"
        texts = [event["text"] for event in events]
        assert all(after.startswith(before) for before, after in pairwise(texts))
        assert {"text", "output_ids", "meta_info"} <= set(events[-1])
        assert usage_in(answer.body) is not None


async def test_probes_are_answered_alike(cluster: Cluster) -> None:
    async with FakeWorker("decode", Rendezvous()).serve() as fake:
        for port in (cluster.servers["d0"].port, fake.port):
            pool = ConnectionPool("127.0.0.1", port)
            assert await is_ready(pool, 30.0)
            facts = await read_facts(pool)
            assert (facts.mode, facts.serves_local_turns) == ("decode", True)
            assert facts.kv_capacity_tokens > 0
            assert facts.incarnation is not None
            assert facts.incarnation == (await read_facts(pool)).incarnation
            pool.close()


@every_endpoint
async def test_prefix_is_found_under_the_same_salt_alone(cluster: Cluster, path: str) -> None:
    salts: list[dict[str, Any]] = [{"extra_key": "a"}, {"extra_key": "b"}, {"extra_key": "a"}, {}]
    if path != "/generate":  # 0.5.17's knows no cache_salt, and takes an empty key for a key
        salts += [{"extra_key": ""}, {"cache_salt": "c"}, {"cache_salt": "d"}, {"cache_salt": "c"}]
    text = f"{random.getrandbits(64)} said " + "something long enough " * 20
    said = {"messages": [{"role": "user", "content": text}], "prompt": text, "text": text}
    asked: dict[str, Any] = {key: said.get(key, value) for key, value in TURNS[path].items()}
    async with FakeWorker("null", Rendezvous()).serve() as fake:
        found = []
        for port in (cluster.servers["ref"].port, fake.port):
            usages = [usage_in((await ask(port, path, asked | salt, {})).body) for salt in salts]
            found.append([usage is not None and usage.cached_tokens > 100 for usage in usages])
    assert (
        found[0] == found[1] == [False, False, True, False, True, False, False, True][: len(salts)]
    )


async def test_session_is_closed_with_an_empty_200(cluster: Cluster) -> None:
    async with FakeWorker("decode", Rendezvous()).serve() as fake:
        for port in (cluster.servers["d0"].port, fake.port):
            answer = await ask(port, "/close_session", {"session_id": "conv-nobody"}, {})
            assert (answer.status, answer.body) == (200, b"")


TOOL: dict[str, Any] = {
    "name": "go",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"to": {"enum": ["Rome"]}},
        "required": ["to"],
        "additionalProperties": False,
    },
}


def calls_in(answer: Answer) -> list[tuple[int, bool, bool]]:
    """Each piece of a call: which call, and whether it has an id and a name."""
    found = []
    for event in answer.events[:-1]:
        for choice in event["choices"]:
            for piece in choice["delta"].get("tool_calls") or ():
                function = piece["function"]
                found.append((piece["index"], bool(piece["id"]), bool(function["name"])))
    return found


async def test_streamed_call_has_its_name_first_and_its_counts_with_each_piece(
    cluster: Cluster,
) -> None:
    body = {
        **TURNS["/v1/chat/completions"], "max_tokens": 200, "stream": True,
        "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required",
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    async with FakeWorker("null", Rendezvous()).serve() as fake:
        fake.answer = ""
        fake.tool_calls = [("go", '{"to": "Rome"}')]
        ports = (cluster.servers["ref"].port, fake.port)
        answers = [await ask(port, "/v1/chat/completions", body, {}) for port in ports]
    for answer in answers:
        first, *rest = calls_in(answer)
        assert first == (0, True, True)
        assert set(rest) == {(0, False, False)}
        *pieces, counted, done = answer.events
        assert (counted["choices"], done) == ([], "[DONE]")
        assert pieces[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert pieces[-1]["choices"][0]["matched_stop"] != ""
        assert all(
            piece["usage"] for piece in pieces if "tool_calls" in str(piece["choices"][0]["delta"])
        )


async def test_chat_prompt_is_tokenized_alike(cluster: Cluster) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    async with FakeWorker("decode", Rendezvous()).serve() as fake:
        for port in (cluster.servers["d0"].port, fake.port):
            answer = await ask(port, "/v1/tokenize", body, {})
            assert answer.status == 200
            assert answer.json()["count"] == len(answer.json()["tokens"]) > 0
