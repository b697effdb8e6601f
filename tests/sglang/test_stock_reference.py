"""What everything else is compared with: a stock server, and stock prefill/decode on two."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from tests.sglang.cluster import Cluster

pytestmark = pytest.mark.sglang

_rooms = count(0x5EED)

PROMPTS = [
    "The capital of France is",
    "x",
    " ".join(f"line {number}: the quick brown fox" for number in range(60)),
]


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        decoded: dict[str, Any] = json.load(answer)
        return decoded


def _post_pair(cluster: Cluster, decoder: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One turn as stock PD serves it: the same body to both, joined by a room."""
    paired = {
        **body,
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": cluster.bootstrap_port,
        "bootstrap_room": next(_rooms),
    }
    with ThreadPoolExecutor(1) as pool:
        prefilled = pool.submit(_post, cluster.url("p0") + path, paired)
        answer = _post(cluster.url(decoder) + path, paired)
        prefilled.result()
    return answer


def _generate(text: str) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": 48}}


def _chat(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 48, **fields}


@pytest.mark.parametrize("text", PROMPTS, ids=["short", "one-byte", "longer-than-a-chunk"])
def test_the_reference_answers_the_same_twice(cluster: Cluster, text: str) -> None:
    url = cluster.url("ref") + "/generate"
    first, second = _post(url, _generate(text)), _post(url, _generate(text))
    assert first["output_ids"] == second["output_ids"]
    assert len(set(first["output_ids"])) > 8
    assert second["meta_info"]["cached_tokens"] >= len(text) - 1


@pytest.mark.parametrize("decoder", ["d0", "d1"])
@pytest.mark.parametrize("text", PROMPTS, ids=["short", "one-byte", "longer-than-a-chunk"])
def test_stock_pd_answers_as_the_reference_does(cluster: Cluster, decoder: str, text: str) -> None:
    reference = _post(cluster.url("ref") + "/generate", _generate(text))
    answer = _post_pair(cluster, decoder, "/generate", _generate(text))
    assert answer["output_ids"] == reference["output_ids"]


@pytest.mark.parametrize("decoder", ["d0", "d1"])
def test_stock_pd_chats_as_the_reference_does(cluster: Cluster, decoder: str) -> None:
    path = "/v1/chat/completions"
    reference = _post(cluster.url("ref") + path, _chat("Plan a trip."))
    answer = _post_pair(cluster, decoder, path, _chat("Plan a trip."))
    assert answer["choices"] == reference["choices"]


def test_a_schema_is_followed_to_its_end(cluster: Cluster) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}}}
    schema["required"] = ["color"]
    wanted = {"type": "json_schema", "json_schema": {"name": "pick", "schema": schema}}
    body = _chat("Pick a color.", response_format=wanted)
    choice = _post(cluster.url("ref") + "/v1/chat/completions", body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"])["color"] in {"red", "green"}


def test_a_named_tool_is_called(cluster: Cluster) -> None:
    parameters: dict[str, Any] = {"type": "object"}
    parameters["properties"] = {"city": {"enum": ["Paris", "Rome"]}}
    parameters["required"] = ["city"]
    function = {"name": "get_weather", "parameters": parameters, "strict": True}
    body = _chat(
        "What is the weather?",
        max_tokens=200,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    choice = _post(cluster.url("ref") + "/v1/chat/completions", body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"])["city"] in {"Paris", "Rome"}
