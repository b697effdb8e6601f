"""Anthropic Messages through the router, with the official client."""

import asyncio
import json
from typing import Any

import anthropic
import pytest

from tests.fakes.router_cluster import Cluster, a_cluster

SESSION = "0d3ad7f1-6a3c-4f6b-9a49-0a7c5c7a8a11"
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}


def client_of(cluster: Cluster, **settings: Any) -> anthropic.AsyncAnthropic:
    url = f"http://127.0.0.1:{cluster.service.port}"
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, **settings)


async def ask(cluster: Cluster, *said: Any, **fields: Any) -> Any:
    """One message; `said` alternates between user and assistant."""
    messages: Any = [
        {"role": ("user", "assistant")[n % 2], "content": each} for n, each in enumerate(said)
    ]
    async with client_of(cluster) as client:
        return await client.messages.create(
            messages=messages, **{"model": "tiny", "max_tokens": 16, **fields}
        )


def chat_of(cluster: Cluster, turn: int = -1) -> dict[str, Any]:
    """The chat completion a decoder was asked for."""
    turns = cluster["d0"].turns + cluster["d1"].turns
    return turns[turn].body


async def test_message_is_answered_in_the_shape_its_client_reads(cluster: Cluster) -> None:
    message = await ask(cluster, "hello")
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert [block.text for block in message.content] == ["the answer"]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len("hello")
    assert usage.output_tokens == len("the answer")
    assert message._request_id.startswith("req_")


async def test_stream_has_every_event_in_order(cluster: Cluster) -> None:
    names = []
    async with client_of(cluster) as client:
        stream = await client.messages.create(
            model="tiny",
            max_tokens=16,
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
        )
        async for event in stream:
            names.append(event.type)
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("split_bytes", [0, 7])
async def test_streaming_helper_gathers_thoughts_text_and_calls(split_bytes: int) -> None:
    async with a_cluster() as cluster:
        for worker in cluster.workers.values():
            worker.reasoning = "hm"
            worker.tool_calls = [("weather", '{"city": "Rome"}'), ("weather", "{}")]
            worker.faults.split_bytes = split_bytes
        async with (
            client_of(cluster) as client,
            client.messages.stream(
                model="tiny",
                max_tokens=16,
                tools=[WEATHER],
                messages=[{"role": "user", "content": "hello"}],
            ) as stream,
        ):
            message = await stream.get_final_message()
    thought, text, first, second = message.content
    assert thought.type == "thinking"
    assert thought.thinking == "hm"
    assert text.type == "text"
    assert text.text == "the answer"
    assert first.type == second.type == "tool_use"
    assert [(call.id, call.name, call.input) for call in (first, second)] == [
        ("call_0", "weather", {"city": "Rome"}),
        ("call_1", "weather", {}),
    ]
    assert message.stop_reason == "tool_use"
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == 5
    assert message.usage.output_tokens == len("the answer")


async def test_whole_answer_holds_the_same_blocks(cluster: Cluster) -> None:
    for worker in cluster.workers.values():
        worker.reasoning = "hm"
        worker.tool_calls = [("weather", '{"city": "Rome"}')]
    message = await ask(cluster, "hello", tools=[WEATHER])
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"city": "Rome"}
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish_reason", "matched_stop", "told"),
    [
        ("stop", 151645, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
        ("content_filter", None, ("refusal", None)),
    ],
)
async def test_reason_of_the_end_is_told(
    cluster: Cluster,
    stream: bool,
    finish_reason: str,
    matched_stop: Any,
    told: tuple[str, str | None],
) -> None:
    for worker in cluster.workers.values():
        worker.finish_reason, worker.matched_stop = finish_reason, matched_stop
    async with client_of(cluster) as client:
        asked: Any = {"model": "tiny", "max_tokens": 9, "stop_sequences": ["END"]}
        asked["messages"] = [{"role": "user", "content": "hello"}]
        if stream:
            async with client.messages.stream(**asked) as events:
                message = await events.get_final_message()
        else:
            message = await client.messages.create(**asked)
    assert (message.stop_reason, message.stop_sequence) == told
    assert chat_of(cluster)["stop"] == ["END"]


async def test_later_turn_is_found_by_its_history_and_stays_on_its_decoder(
    cluster: Cluster,
) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = [("weather", '{"city": "Rome"}')]
    async with client_of(cluster) as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        places = []
        for n in range(3):
            asked: Any = {"model": "tiny", "max_tokens": 9, "tools": [WEATHER]}
            raw = await client.messages.with_raw_response.create(messages=messages, **asked)
            places.append((raw.headers["x-conserve-decoder"], raw.headers["x-conserve-reason"]))
            message = await raw.parse()
            messages.append({"role": "assistant", "content": message.content})
            call = message.content[-1]
            result = {"type": "tool_result", "tool_use_id": call.id, "content": f"sun {n}"}
            messages.append({"role": "user", "content": [result]})
    decoder = places[0][0]
    assert places == [(decoder, "first_turn"), (decoder, "pinned"), (decoder, "pinned")]
    assert message.usage.cache_read_input_tokens > 0
    roles = [message["role"] for message in cluster[decoder].turns[-1].body["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize(
    ("headers", "user_id", "name"),
    [
        ({"x-claude-code-session-id": SESSION}, None, SESSION),
        (
            {"x-claude-code-session-id": SESSION, "x-claude-code-agent-id": "a1"},
            None,
            f"{SESSION}/a1",
        ),
        ({"x-conversation-id": "mine"}, f"user_1_account__session_{SESSION}", "mine"),
        ({}, f"user_1_account__session_{SESSION}", SESSION),
        ({}, json.dumps({"device_id": "d", "session_id": SESSION}), SESSION),
    ],
)
async def test_session_of_claude_code_names_the_conversation(
    cluster: Cluster, headers: dict[str, str], user_id: str | None, name: str
) -> None:
    extra: dict[str, Any] = {} if user_id is None else {"metadata": {"user_id": user_id}}
    for said in (["a"], ["a", "the answer", "b"]):
        await ask(cluster, *said, extra_headers=headers, **extra)
    first, second = cluster["d0"].turns + cluster["d1"].turns
    assert "bootstrap_room" not in second.body
    assert first.body["session_id"] == second.body["session_id"]
    assert not {"x-claude-code-agent-id", "x-api-key"} & set(second.headers)
    answer = await cluster.request("GET", f"/v1/conversations/{name}")
    assert (answer.status, answer.json()["turns"]) == (200, 2)


@pytest.mark.parametrize("user_id", ["someone", "{", '{"a":1}'])
async def test_other_user_ids_name_no_conversation(cluster: Cluster, user_id: str) -> None:
    for _ in range(2):
        await ask(cluster, "hello", metadata={"user_id": user_id})
    first, second = cluster["d0"].turns + cluster["d1"].turns
    assert first.body["session_id"] != second.body["session_id"]


async def test_broken_attempt_is_tried_elsewhere_and_never_seen(cluster: Cluster) -> None:
    cluster["d0"].faults.num_cuts_before_head = 1
    cluster["d1"].faults.num_cuts_before_head = 1
    message = await ask(cluster, "hello")
    assert message.content[0].text == "the answer"


async def test_refused_local_turn_is_served_as_a_new_phase_one(cluster: Cluster) -> None:
    await ask(cluster, "a", extra_headers={"x-conversation-id": "c"})
    for name in ("d0", "d1"):
        cluster[name].faults.refusals = ["prefix_missing"]
    said = ("a", "the answer", "b")
    message = await ask(cluster, *said, extra_headers={"x-conversation-id": "c"})
    assert message.content[0].text == "the answer"
    assert "bootstrap_room" in chat_of(cluster)


async def test_errors_have_the_shape_and_types_of_this_api(cluster: Cluster) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await ask(cluster, "hello", model="claude-9")
    assert unknown.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "The model 'claude-9' is not served here. Use 'tiny'.",
        },
        "request_id": unknown.value.request_id,
    }
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\]"):
        await ask(cluster, [{"type": "document", "source": {}}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await ask(cluster, "hello", max_tokens=0)
    for worker in cluster.workers.values():
        worker.faults.statuses = [503] * 9
    with pytest.raises(anthropic.InternalServerError) as busy:
        await ask(cluster, "hello")
    error: Any = busy.value.body
    assert error["error"]["type"] == "overloaded_error"


async def test_wrong_method_and_path_are_told_in_this_apis_shape(cluster: Cluster) -> None:
    for method, path, status in (
        ("GET", "/v1/messages", 405),
        ("GET", "/v1/messages/count_tokens", 405),
        ("POST", "/v1/messages/batches", 404),
    ):
        answer = await cluster.request(method, path)
        assert answer.status == status
        assert answer.json()["type"] == "error"
        assert answer.headers["request-id"] == answer.json()["request_id"]
    assert "error" in (await cluster.request("GET", "/v1/nothing")).json()


async def test_stream_that_breaks_ends_with_an_error_event(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.cut_after_events = 1
    body = {"model": "tiny", "max_tokens": 9, "stream": True}
    answer = await cluster.post(
        "/v1/messages", {**body, "messages": [{"role": "user", "content": "hello"}]}
    )
    events = answer.body.decode().split("\n\n")
    assert events[0].startswith("event: message_start\n")
    assert events[-2].startswith("event: error\ndata: ")
    assert json.loads(events[-2].partition("data: ")[2])["error"]["type"] == "api_error"


async def test_stream_goes_on_elsewhere_without_a_seam(cluster: Cluster) -> None:
    decoders = (cluster["d0"], cluster["d1"])
    for each in decoders:
        each.answer = "one two three four"
    cluster["d0"].faults.cut_after_events = 2
    async with (
        client_of(cluster) as client,
        client.messages.stream(
            model="tiny", max_tokens=99, messages=[{"role": "user", "content": "hello"}]
        ) as stream,
    ):
        message = await stream.get_final_message()
    assert [block.text for block in message.content if block.type == "text"] == [
        "one two three four"
    ]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == len("one two three four")
    assert all(each.turns for each in decoders)


async def test_client_that_leaves_ends_the_workers_work(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.event_delay_s = 5.0
    client = await cluster.connect()
    asked = {"model": "tiny", "max_tokens": 9, "stream": True}
    client.ask("/v1/messages", {**asked, "messages": [{"role": "user", "content": "hello"}]})
    await client.head()
    client.close()
    decoders = (cluster["d0"], cluster["d1"])
    await cluster.until(lambda: any(t.was_aborted for each in decoders for t in each.turns))


async def test_tokens_are_counted_by_a_worker(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        counted = await client.messages.count_tokens(
            model="tiny", system="be brief", messages=[{"role": "user", "content": "hello"}]
        )
        assert counted.input_tokens == len("be brief") + len("hello")
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(
                model="other", messages=[{"role": "user", "content": "hello"}]
            )
    assert not any(worker.turns for worker in cluster.workers.values())


async def test_tokens_that_cannot_be_counted_are_an_error() -> None:
    async with a_cluster({"d0": "decode"}) as cluster, client_of(cluster) as client:
        await cluster["d0"].stop()
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.count_tokens(
                model="tiny", messages=[{"role": "user", "content": "hello"}]
            )


async def test_models_are_listed(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        listed = [model async for model in client.models.list()]
        assert [(model.id, model.type) for model in listed] == [("tiny", "model")]
        assert (await client.models.retrieve("tiny")).display_name == "tiny"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("other")


def test_sync_client_streams_as_well() -> None:
    def talk(url: str) -> str:
        with (
            anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
            client.messages.stream(
                model="tiny", max_tokens=9, messages=[{"role": "user", "content": "hello"}]
            ) as stream,
        ):
            return "".join(stream.text_stream)

    async def serve() -> str:
        async with a_cluster() as cluster:
            url = f"http://127.0.0.1:{cluster.service.port}"
            return await asyncio.to_thread(talk, url)

    assert asyncio.run(serve()) == "the answer"
