"""A decoder goes on with a stream another one began: nothing is missing, nothing comes twice.

Here without a router: each stream is cut behind each of its events, as if its decoder died there,
and a second decoder is asked for the rest.
"""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest

from conserve_sglang.core.continuation import MARK, TELL_HEADER, continuation_rid
from tests.sglang.cluster import Cluster
from tests.sglang.decoder import ids

pytestmark = pytest.mark.sglang

_rooms = count(0xC0DE)
CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
WEATHER["required"] = ["city"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "pick", "schema": {**WEATHER, "additionalProperties": False}},
}


def chat(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    usage = {"include_usage": True}
    asked = {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 24}
    return {**asked, "stream": True, "stream_options": usage, **fields}


def completion(text: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": "any", "prompt": text, "temperature": 0, "max_tokens": 24, "stream": True}
    return {**asked, "stream_options": {"include_usage": True}, **fields}


REQUESTS = {
    "chat": (CHAT, chat("Tell me of the sea.")),
    "chat-ignoring-its-end": (CHAT, chat("Once upon", ignore_eos=True, max_tokens=40)),
    "chat-with-a-schema": (CHAT, chat("Pick a city.", response_format=SCHEMA, max_tokens=60)),
    "chat-calling-a-tool": (
        CHAT,
        chat(
            "The weather?",
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_tokens=80,
        ),
    ),
    "chat-counting-as-it-goes": (
        CHAT,
        chat("x", stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    "completion": (COMPLETION, completion("The capital of France is")),
    "completion-at-least": (COMPLETION, completion("y", min_tokens=20, max_tokens=22)),
}


def ask_pair(
    cluster: Cluster, decoder: str, path: str, body: dict[str, Any], headers: dict[str, str]
) -> list[bytes]:
    """A phase 1 as the router sends it; the events of the decoder's stream."""
    room = {
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": cluster.bootstrap_port,
        "bootstrap_room": next(_rooms),
    }

    def ask(server: str) -> bytes:
        client = http.client.HTTPConnection("127.0.0.1", cluster.servers[server].port, timeout=120)
        sent = json.dumps({**body, **room}).encode()
        client.request("POST", path, sent, {"content-type": "application/json", **headers})
        answer = client.getresponse().read()
        client.close()
        return answer

    with ThreadPoolExecutor(1) as beside:
        prefilled = beside.submit(ask, "p0")
        answer = ask(decoder)
        prefilled.result()
    return [event + b"\n\n" for event in answer.split(b"\n\n") if event]


def taken_apart(events: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The events a client would see, and the ids told with each."""
    seen, told = [], []
    for event in events:
        data, mark, ids_told = event.partition(MARK)
        seen.append(data + (b"\n\n" if mark else b""))
        told.append(ids_told.strip())
    return seen, told


@dataclass(frozen=True)
class Whole:
    """What a stream comes to, however its tokens were put into events."""

    heads: set[tuple[str, int, str]]
    num_roles: int
    text: str
    calls: dict[int, str]
    finish: list[str]
    usage: list[tuple[int, int]]
    is_done: bool


def whole(seen: list[bytes]) -> Whole:
    events = [json.loads(event[6:]) for event in seen if not event.startswith(b"data: [DONE]")]
    choices = [choice for event in events for choice in event["choices"]]
    deltas = [choice.get("delta") or choice for choice in choices]
    calls: dict[int, str] = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls") or ()):
        said = (call["function"]["name"] or "") + (call["function"]["arguments"] or "")
        calls[call["index"]] = calls.get(call["index"], "") + said
    return Whole(
        heads={(event["id"], event["created"], event["model"]) for event in events},
        num_roles=sum(delta.get("role") == "assistant" for delta in deltas),
        text="".join(delta.get("content") or delta.get("text") or "" for delta in deltas),
        calls=calls,
        finish=[choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        usage=[
            (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
            for event in events
            if not event["choices"]
        ],
        is_done=seen[-1] == b"data: [DONE]\n\n",
    )


def flat(told: list[bytes]) -> list[int]:
    return [int(i) for steps in told for i in steps.replace(b";", b",").split(b",") if i]


def resumed(
    cluster: Cluster, path: str, body: dict[str, Any], seen: list[bytes], told: list[bytes]
) -> list[bytes]:
    first = json.loads(seen[0][6:])
    rid = continuation_rid(
        answer_id=first["id"],
        created=first["created"],
        num_events=len(seen),
        steps=b";".join(step for step in told if step).decode(),
    )
    return ask_pair(cluster, "d1", path, {"rid": rid, **body}, {TELL_HEADER: "ids"})


@pytest.mark.parametrize("name", REQUESTS)
def test_stream_cut_anywhere_goes_on_at_another_decoder(cluster: Cluster, name: str) -> None:
    path, body = REQUESTS[name]
    plain = ask_pair(cluster, "d0", path, body, {})
    events = ask_pair(cluster, "d0", path, body, {TELL_HEADER: "ids"})
    seen, told = taken_apart(events)
    expected = whole(seen)
    assert replace(expected, heads=set()) == replace(whole(plain), heads=set())
    assert (expected.is_done, len(expected.heads), len(expected.finish)) == (True, 1, 1)
    assert expected.usage[0][1] == len(flat(told)) > 4
    assert [MARK in event for event in events] == [True] * (len(events) - 1) + [False]
    cuts = sorted({1, 2, 3, len(seen) // 3, len(seen) // 2, *range(len(seen) - 4, len(seen))})
    for cut in cuts:
        rest = resumed(cluster, path, body, seen[:cut], told[:cut])
        seen_on, told_on = taken_apart(rest)
        assert whole(seen[:cut] + seen_on) == expected, f"cut behind {cut} of {len(seen)}"
        assert flat(told[:cut] + told_on) == flat(told)


def test_answer_cut_twice_goes_on_twice(cluster: Cluster) -> None:
    path, body = REQUESTS["chat-ignoring-its-end"]
    seen, told = taken_apart(ask_pair(cluster, "d0", path, body, {TELL_HEADER: "ids"}))
    first = len(seen) // 3
    once, told_once = taken_apart(resumed(cluster, path, body, seen[:first], told[:first]))
    second = len(once) // 2
    by_now, told_by_now = seen[:first] + once[:second], told[:first] + told_once[:second]
    twice, _ = taken_apart(resumed(cluster, path, body, by_now, told_by_now))
    assert whole(by_now + twice) == whole(seen)


def test_sampled_answer_goes_on_from_the_tokens_it_has(cluster: Cluster) -> None:
    body = chat("Say", temperature=0.8, ignore_eos=True)
    seen, told = taken_apart(ask_pair(cluster, "d0", CHAT, body, {TELL_HEADER: "ids"}))
    cut = len(seen) // 3
    rest, told_on = taken_apart(resumed(cluster, CHAT, body, seen[:cut], told[:cut]))
    assert len(flat(told[:cut] + told_on)) == 24
    assert whole(seen[:cut] + rest).usage == whole(seen).usage


def test_native_stream_goes_on_behind_the_ids_it_had(cluster: Cluster) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 24}
    body = {"input_ids": ids(300, 11), "sampling_params": sampling, "stream": True}
    seen = ask_pair(cluster, "d0", GENERATE, body, {})
    # A server that is behind tells several tokens in one event.
    for cut in sorted({1, 2, len(seen) // 3, 2 * len(seen) // 3, len(seen) - 2} - {0}):
        last = json.loads(seen[cut - 1][6:])
        steps = ";".join(map(str, last["output_ids"]))
        rid = continuation_rid(
            answer_id=last["meta_info"]["id"], created=0, num_events=cut, steps=steps
        )
        rest = ask_pair(cluster, "d1", GENERATE, {"rid": rid, **body}, {})
        originals = {len(essence(event)[1]): essence(event) for event in seen[:-1]}
        assert rest
        for event in rest[:-1]:
            at = essence(event)
            assert len(at[1]) > len(last["output_ids"])
            assert at == originals.get(len(at[1]), at)
        assert essence(rest[-2]) == essence(seen[-2])


def essence(event: bytes) -> Any:
    decoded = json.loads(event[6:])
    meta = decoded["meta_info"]
    counts = ("id", "finish_reason", "prompt_tokens", "completion_tokens")
    return decoded["text"], decoded["output_ids"], [meta[name] for name in counts]


@pytest.mark.parametrize(
    "fields",
    [{"logprobs": True}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_cannot_be_continued_exactly_is_not_told(
    cluster: Cluster, fields: dict[str, Any]
) -> None:
    body = chat("x", max_tokens=4, **fields)
    assert not [e for e in ask_pair(cluster, "d0", CHAT, body, {TELL_HEADER: "ids"}) if MARK in e]
    seen, _ = taken_apart(ask_pair(cluster, "d0", CHAT, body, {}))
    (refusal,) = resumed(cluster, CHAT, body, seen[:1], [b"65"])
    assert json.loads(refusal)["code"] == 400
    assert b"cannot be continued" in refusal
