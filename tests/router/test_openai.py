"""What agents ask of the OpenAI API, through the router, with the official client."""

import asyncio
from typing import Any

import openai
import pytest

from tests.fakes.router_cluster import Cluster, a_cluster

HELLO: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CALLS = [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')]


def client_of(cluster: Cluster) -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{cluster.service.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


def calling(cluster: Cluster) -> None:
    for worker in cluster.workers.values():
        worker.tool_calls = CALLS


async def test_parallel_tool_calls_and_their_results(cluster: Cluster) -> None:
    calling(cluster)
    messages: Any = list(HELLO)
    async with client_of(cluster) as client:
        for reason in ("first_turn", "pinned", "pinned"):
            raw = await client.chat.completions.with_raw_response.create(
                model="tiny", messages=messages, tools=[WEATHER], parallel_tool_calls=True
            )
            assert raw.headers["x-conserve-reason"] == reason
            choice = raw.parse().choices[0]
            assert choice.finish_reason == "tool_calls"
            calls: Any = choice.message.tool_calls
            assert [(call.function.name, call.function.arguments) for call in calls] == CALLS
            messages.append(choice.message)
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in calls
            ]
    sent = (cluster["d0"].turns + cluster["d1"].turns)[-1].body
    assert sent["tools"] == [WEATHER]
    assert sent["parallel_tool_calls"] is True


@pytest.mark.parametrize("split_bytes", [0, 7])
async def test_streaming_helper_gathers_tool_calls(split_bytes: int) -> None:
    async with a_cluster() as cluster, client_of(cluster) as client:
        calling(cluster)
        for worker in cluster.workers.values():
            worker.faults.split_bytes = split_bytes
        asked: Any = {"model": "tiny", "messages": HELLO, "tools": [WEATHER]}
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "the answer"
    assert [call.function.arguments for call in message.tool_calls or ()] == [
        arguments for _, arguments in CALLS
    ]
    assert final.usage is None


@pytest.mark.parametrize("include_usage", [True, False, None])
async def test_usage_comes_with_a_stream_if_asked_for(
    cluster: Cluster, include_usage: bool | None
) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "stream": True}
    if include_usage is not None:
        asked["stream_options"] = {"include_usage": include_usage}
    async with client_of(cluster) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked)]
    counted = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(counted) == (include_usage is True)
    assert all(chunk.choices for chunk in chunks[:-1])
    if counted:
        assert (counted[0].prompt_tokens, counted[0].completion_tokens) == (5, 10)
        assert chunks[-1].choices == []


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_reach_the_client(cluster: Cluster, stream: bool) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 1}
    async with client_of(cluster) as client:
        if stream:
            chunks = await client.chat.completions.create(**asked, stream=True)
            choices: Any = [chunk.choices[0] async for chunk in chunks if chunk.choices]
        else:
            choices = (await client.chat.completions.create(**asked)).choices
    for choice in choices:
        assert choice.logprobs.content[0].top_logprobs[0].logprob == -0.5


async def test_schema_and_tool_choice_go_to_the_worker_as_they_are(cluster: Cluster) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}},
    }
    choice = {"type": "function", "function": {"name": "weather"}}
    asked: Any = {"messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "seed": 1}
    async with client_of(cluster) as client:
        await client.chat.completions.create(model="tiny", response_format=schema, **asked)
    for seen in (*cluster["p0"].turns, *cluster["d0"].turns, *cluster["d1"].turns):
        assert {name: seen.body[name] for name in asked} == asked
        assert seen.body["response_format"] == schema


async def test_completion_of_one_prompt_in_a_list(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        answer = await client.completions.create(model="tiny", prompt=["hello"])
        assert answer.choices[0].text == "the answer"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 5
        chunks = await client.completions.create(model="tiny", prompt=["hello"], stream=True)
        said = [chunk.choices[0].text async for chunk in chunks]
    assert "".join(said) == "the answer"


async def test_errors_are_those_the_client_knows(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="gpt-9", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="from 1 to 128") as several:
            await client.chat.completions.create(model="tiny", messages=HELLO, n=129)
        assert (several.value.code, several.value.param) == ("wrong_type", "n")


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_of_a_first_turn(cluster: Cluster, stream: bool) -> None:
    said = dict.fromkeys(range(3), "")
    async with client_of(cluster) as client:
        asked: Any = {"model": "tiny", "messages": HELLO, "n": 3}
        if stream:
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                for each in chunk.choices:
                    said[each.index] += each.delta.content or ""
        else:
            whole = await client.chat.completions.create(**asked)
            said = {each.index: each.message.content or "" for each in whole.choices}
    assert said == dict.fromkeys(range(3), "the answer")


async def test_what_is_not_served_says_what_is(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        with pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as unknown:
            await client.embeddings.create(model="tiny", input="hello")
        assert unknown.value.code == "unknown_path"
    for path in ("/v1/rerank", "/v1/audio/transcriptions", "/v1/score"):
        answer = await cluster.post(path, {})
        assert answer.status == 404
        assert "/v1/messages" in answer.json()["error"]["message"]


async def test_models_are_listed(cluster: Cluster) -> None:
    async with client_of(cluster) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).object == "model"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


def test_sync_client_as_well() -> None:
    def talk(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="tiny", messages=HELLO)
            asked: Any = {"model": "tiny", "messages": HELLO, "stream": True}
            chunks = client.chat.completions.create(**asked)
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        return whole.choices[0].message.content, "".join(pieces)

    async def serve() -> tuple[str | None, str]:
        async with a_cluster() as cluster:
            return await asyncio.to_thread(talk, f"http://127.0.0.1:{cluster.service.port}/v1")

    assert asyncio.run(serve()) == ("the answer", "the answer")
