"""OpenAI Responses through the router, with the official client."""

from typing import Any

import openai
import pytest

from conserve_sglang.core.tier import Overload
from conserve_sglang.router.responses_answer import ResponseStream
from tests.fakes.router_cluster import Cluster, a_cluster

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALLS = [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')]


def client_of(cluster: Cluster) -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{cluster.service.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


def last_chat(cluster: Cluster) -> dict[str, Any]:
    """What the decoder in use was last asked for."""
    turns = cluster["d0"].turns or cluster["d1"].turns
    return turns[-1].body


async def test_response_has_the_shape_its_client_reads(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        response = await client.responses.create(
            model="tiny", input="hello", instructions="be brief", max_output_tokens=9,
            metadata={"a": "b"},
        )  # fmt: skip
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", "tiny")
    assert response.output_text == "the answer"
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert response.usage.input_tokens == len("be brief" + "hello")
    assert response.usage.output_tokens == len("the answer")
    asked = last_chat(cluster)
    assert asked["max_tokens"] == 9
    assert asked["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_previous_response_goes_on_with_its_conversation_on_its_decoder(
    cluster: Cluster, stream: bool
) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = CALLS
        worker.reasoning = "hm"
    previous, said = None, []
    async with client_of(cluster) as client:
        given: Any = "hello"
        for _ in range(3):
            asked: Any = {"model": "tiny", "input": given, "tools": [WEATHER]}
            asked |= {"previous_response_id": previous, "instructions": "be brief"}
            if stream:
                async with client.responses.stream(**asked) as events:
                    response: Any = await events.get_final_response()
            else:
                response = await client.responses.create(**asked)
            previous = response.id
            calls = [item for item in response.output if item.type == "function_call"]
            said.append([(call.name, call.arguments) for call in calls])
            given = [
                {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
                for call in calls
            ]
    assert said == [CALLS] * 3
    assert len(cluster["p0"].turns) == 1
    assert response.usage.input_tokens_details.cached_tokens > 0
    messages = last_chat(cluster)["messages"]
    roles = ["system", "user", *["assistant", "tool", "tool"] * 2]
    assert [message["role"] for message in messages] == roles
    assert messages[2]["content"] == "the answer"
    assert messages[2]["reasoning_content"] == "hm"
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["call_0", "call_1"]


async def test_whole_history_sent_back_is_the_same_conversation(cluster: Cluster) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = CALLS
    given: Any = [{"role": "user", "content": "hello"}]
    async with client_of(cluster) as client:
        for _ in range(3):
            response = await client.responses.create(
                model="tiny", input=given, tools=[WEATHER], store=False
            )
            assert response.output_text == "the answer"
            given += response.output
            given += [
                {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
                for item in response.output
                if item.type == "function_call"
            ]
    assert len(cluster["p0"].turns) == 1


@pytest.mark.parametrize("split_bytes", [0, 7])
async def test_stream_has_every_event_in_order(split_bytes: int) -> None:
    async with a_cluster() as cluster, client_of(cluster) as client:
        for worker in cluster.workers.values():
            worker.reasoning = "hm"
            worker.tool_calls = CALLS[:1]
            worker.faults.split_bytes = split_bytes
        events = [
            event
            async for event in await client.responses.create(
                model="tiny", input="hello", stream=True
            )
        ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    item = ["response.output_item.added"], ["response.output_item.done"]
    part = ["response.content_part.added"], ["response.content_part.done"]
    call = "response.function_call_arguments"
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        *item[0], *part[0], "response.reasoning_text.delta", "response.reasoning_text.done",
        *part[1], *item[1],
        *item[0], *part[0], *["response.output_text.delta"] * 2, "response.output_text.done",
        *part[1], *item[1],
        *item[0], *[f"{call}.delta"] * 2, f"{call}.done", *item[1],
        "response.completed",
    ]  # fmt: skip
    final: Any = events[-1]
    assert [item.type for item in final.response.output] == [
        "reasoning",
        "message",
        "function_call",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_cut_by_its_limit_is_incomplete(cluster: Cluster, stream: bool) -> None:
    for worker in cluster.workers.values():
        worker.finish_reason = "length"
    async with client_of(cluster) as client:
        if stream:
            asked: Any = {"model": "tiny", "input": "hello", "stream": True}
            *_, last = [event async for event in await client.responses.create(**asked)]
            assert last.type == "response.incomplete"
            response = last.response
        else:
            response = await client.responses.create(model="tiny", input="hello")
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_fields_become_those_of_a_chat_completion(cluster: Cluster) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    async with client_of(cluster) as client:
        await client.responses.create(
            model="tiny", temperature=0.5, top_p=0.9, parallel_tool_calls=False, user="u",
            tools=[WEATHER], tool_choice={"type": "function", "name": "weather"},
            reasoning={"effort": "high"},
            text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
            input=[
                {"role": "developer", "content": "rules"},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "see"},
                        {"type": "input_image", "image_url": "http://x/y.png", "detail": "auto"},
                    ],
                },
            ],
        )  # fmt: skip
    asked = last_chat(cluster)
    assert asked["response_format"]["json_schema"] == {"name": "n", "schema": schema}
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert asked["tools"][0]["function"]["name"] == "weather"
    for name, value in {"temperature": 0.5, "top_p": 0.9, "parallel_tool_calls": False}.items():
        assert asked[name] == value
    assert asked["reasoning_effort"] == "high"
    system, user = asked["messages"]
    assert system == {"role": "system", "content": "rules"}
    assert user["content"][1] == {"type": "image_url", "image_url": {"url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, None),
        ({"tool_choice": {"type": "function", "name": "other"}}, None),
    ],
)
async def test_what_cannot_be_served_is_named(
    cluster: Cluster, fields: dict[str, Any], param: str | None
) -> None:
    answer = await cluster.post("/v1/responses", {"model": "tiny", "input": "hello", **fields})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", param)


async def test_response_that_is_not_stored_cannot_be_gone_on_from(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello", store=False)
        assert first.to_dict()["store"] is False
        for previous in (first.id, "resp_unknown"):
            with pytest.raises(openai.BadRequestError) as unknown:
                await client.responses.create(
                    model="tiny", input="more", previous_response_id=previous
                )
            assert unknown.value.code == "previous_response_not_found"
            assert unknown.value.param == "previous_response_id"


async def test_deleted_response_is_forgotten(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="tiny", input="more", previous_response_id=first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_nothing_is_stored_where_the_tier_map_says_so() -> None:
    async with a_cluster(stored_responses_mb=0) as cluster, client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="hello")
        assert first.to_dict()["store"] is False
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="tiny", input="more", previous_response_id=first.id)


async def test_history_is_bounded_as_a_request_is() -> None:
    async with a_cluster(max_body_bytes=3000) as cluster, client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="x" * 2000)
        second = await client.responses.create(
            model="tiny", input="x" * 2000, previous_response_id=first.id
        )
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.create(model="tiny", input="x", previous_response_id=second.id)
        assert (refused.value.status_code, refused.value.code) == (413, "history_too_long")


async def test_histories_count_among_the_bytes_that_are_held() -> None:
    overload = Overload(max_held_bytes=2500)
    async with a_cluster(overload=overload) as cluster, client_of(cluster) as client:
        first = await client.responses.create(model="tiny", input="x" * 1500)
        second = await client.responses.create(
            model="tiny", input="x", previous_response_id=first.id
        )
        with pytest.raises(openai.InternalServerError) as refused:
            await client.responses.create(
                model="tiny", input="x" * 1500, previous_response_id=second.id
            )
        assert (refused.value.status_code, refused.value.code) == (503, "router_busy")
        again = await client.responses.create(
            model="tiny", input="x", previous_response_id=second.id
        )
        assert again.output_text == "the answer"


async def test_fault_in_the_translation_ends_the_answer_with_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_take", "_end"):

        def fail(*_: object) -> None:
            raise RuntimeError("a fault of ours")

        with monkeypatch.context() as patch:
            patch.setattr(ResponseStream, name, fail)
            answer = await cluster.post(
                "/v1/responses", {"model": "tiny", "input": "hello", "stream": True}
            )
            assert b"event: error\n" in answer.body
            assert b"router_error" in answer.body
        assert "could not be translated" in caplog.text
    assert (await cluster.chat("hello")).status == 200


async def test_stream_that_breaks_raises_at_the_client(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.cut_after_events = 1
    async with client_of(cluster) as client:
        stream = await client.responses.create(model="tiny", input="hello", stream=True)
        seen = []

        async def listen() -> None:
            async for event in stream:
                seen.append(event.type)

        with pytest.raises(openai.APIError):
            await listen()
    assert seen[0] == "response.created"
    assert "response.completed" not in seen
