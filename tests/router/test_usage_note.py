"""Energy in an answer's usage, for those who ask, however its bytes come."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.usage_note import UsageNote
from conserve_sglang.router.used import Used
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.router.test_energy import a_site, described

ASKED = {"x-conserve-usage": "energy", "x-conversation-id": "c"}
MESSAGES = [{"role": "user", "content": "hello " * 100}]
STREAM = (
    b'data: {"choices":[{"delta":{"content":"\\"usage\\":{"}}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)


def a_conversation() -> Conversation:
    conversation = Conversation(ConversationId("conv-1"), TenantId("t"), b"c")
    used = conversation.energy = Used()
    used.add(1, "prefill", 8.0, "measured", "own")
    used.add(2, "decode", 2.5, "measured", "own")
    return conversation


def fed(note: UsageNote, pieces: list[bytes], conversation: Conversation) -> bytes:
    last = len(pieces) - 1
    return b"".join(note.feed(piece, n == last, conversation, 2) for n, piece in enumerate(pieces))


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_stream_is_the_same_but_for_its_usage_however_it_is_cut(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(ends)]
    told = fed(UsageNote(is_stream=True), pieces, a_conversation())
    first, usage, done = told.split(b"\n\n")[:3]
    assert (first + b"\n\n", done) == (STREAM[: len(first) + 2], b"data: [DONE]")
    energy = json.loads(usage[6:])["usage"]["conserve"]["energy"]
    assert (energy["turn_joules"], energy["conversation_joules"]) == (2.5, 10.5)
    assert (energy["origin"], energy["is_final"]) == ("measured", False)


def test_text_that_looks_like_usage_is_left_alone() -> None:
    body = b'{"text":"\\"usage\\":{","usage":{"prompt_tokens":3}}'
    told = json.loads(fed(UsageNote(is_stream=False), [body[:9], body[9:]], a_conversation()))
    assert told["text"] == '"usage":{'
    assert told["usage"]["conserve"]["energy"]["phases"] == {"prefill": 8.0, "decode": 2.5}


def test_answer_without_usage_passes_as_it_is() -> None:
    assert fed(UsageNote(is_stream=False), [b'{"a":1}'], a_conversation()) == b'{"a":1}'


async def ask(cluster: Cluster, headers: dict[str, str], **fields: Any) -> Any:
    body = {"model": "tiny", "messages": MESSAGES, **fields}
    return await cluster.post("/v1/chat/completions", body, headers)


async def test_client_that_asks_is_told_what_was_billed_so_far() -> None:
    async with a_site() as (cluster, agent):
        first = (await ask(cluster, ASKED)).json()["usage"]
        unknown = first["conserve"]["energy"]
        assert (unknown["turn_joules"], unknown["conversation_joules"]) == (None, None)
        assert unknown["is_final"] is False
        assert first["prompt_tokens"] > 0
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "prefill", 30.0)
        await described(cluster)
        second = (await ask(cluster, ASKED)).json()["usage"]["conserve"]["energy"]
        assert (second["turn_joules"], second["conversation_joules"]) == (None, 30.0)
        assert second["is_final"] is False


@pytest.mark.parametrize("asks_usage", [True, False])
async def test_streams_tell_it_where_they_tell_usage(asks_usage: bool) -> None:
    async with a_site() as (cluster, _):
        options = {"stream_options": {"include_usage": True}} if asks_usage else {}
        answer = await ask(cluster, ASKED, stream=True, **options)
        assert answer.is_whole
        assert answer.events[-1] == "[DONE]"
        assert (b'"conserve"' in answer.body) is asks_usage


WITH_ONE_BILLED = {"turn_joules": None, "conversation_joules": 30.0, "phases": {"prefill": 30.0},
                   "origin": "measured", "split": "own", "is_final": False}  # fmt: skip
TOOL = {"type": "function", "name": "f", "parameters": {"properties": {"usage": {"type": "null"}}}}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"model": "tiny", "max_tokens": 8, "messages": MESSAGES},
    "/v1/responses": {"model": "tiny", "input": "hello " * 100, "tools": [TOOL]},
    "/generate": {"input_ids": list(range(40, 90)), "sampling_params": {"max_new_tokens": 8}},
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", OTHERS)
async def test_every_endpoint_that_is_a_turn_tells_it(path: str, is_stream: bool) -> None:
    async with a_site() as (cluster, agent):
        await ask(cluster, ASKED)
        agent.bill((await described(cluster))["key"], 1, "prefill", 30.0)
        await described(cluster)
        body = {**OTHERS[path], "stream": is_stream}
        answer = await cluster.post(path, body, ASKED)
        assert answer.status == 200, answer.body
        assert answer.body.count(b'"conserve"') == 1
        if is_stream:
            lines = answer.body.splitlines()
            (line,) = [line for line in lines if b'"conserve"' in line]
            told = json.loads(line.removeprefix(b"data: "))
        else:
            told = answer.json()
        told = told.get("response", told)
        counts = told["meta_info" if path == "/generate" else "usage"]
        assert counts["conserve"]["energy"] == WITH_ONE_BILLED


async def test_without_energy_it_is_null() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        assert (await ask(cluster, ASKED)).json()["usage"]["conserve"] == {"energy": None}


async def test_nobody_else_is_told_and_no_worker_sees_the_header() -> None:
    async with a_cluster({"p0": "prefill", "d0": "decode"}) as cluster:
        assert b"conserve" not in (await ask(cluster, {"x-conversation-id": "c"})).body
        await ask(cluster, ASKED)
        assert all("x-conserve-usage" not in seen.headers for seen in cluster["d0"].turns)
