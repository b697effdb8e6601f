"""The clients that agents are written with, through the router on real SGLang.

The model's weights are random, so its text says nothing: what is held to the stock server is that
the same bytes arrive. A tool is called where the request forces it, by SGLang's grammar; parallel
calls and thinking are the model's own choice, and only tests/router covers them.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.sglang.cluster import MODEL_NAME, Cluster
from tests.sglang.routers import Router, running_router
from tests.sglang.talk import TIMEOUT_S, post

pytestmark = pytest.mark.sglang

CONSERVE = {"name": "conserve", "params": {"max_local_append_tokens": 1024}}
CITY: Any = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
CITY["required"] = ["city"]
CITIES = ("Paris", "Rome")
NAMED = {"type": "function", "function": {"name": "weather"}}
SETTINGS: Any = {"max_retries": 0, "timeout": TIMEOUT_S}


@pytest.fixture(scope="module")
def router(cluster: Cluster) -> Iterator[Router]:
    with running_router(cluster, "clients", CONSERVE) as running:
        yield running


@pytest.fixture(scope="module")
def openai_client(router: Router) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", **SETTINGS) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(router: Router) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=router.url, api_key="none", **SETTINGS) as client:
        yield client


def asked(text: str, **fields: Any) -> Any:
    """What a chat is asked for."""
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 12, **fields}


def asked_of_anthropic(text: str, **fields: Any) -> Any:
    """The same, of an Anthropic client, which knows no temperature any more."""
    body = asked(text, **fields)
    del body["temperature"]
    return {**body, "extra_body": {"temperature": 0}}


def as_stock(cluster: Cluster, body: Any) -> Any:
    """What the stock server answers to the same chat."""
    status, answer, _ = post(cluster.url("ref") + "/v1/chat/completions", body)
    assert status == 200, answer
    return answer["choices"][0]


def test_chat_answers_alike_whole_streamed_and_async(
    cluster: Cluster, router: Router, openai_client: openai.OpenAI
) -> None:
    async def whole_async() -> str | None:
        url = f"{router.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", **SETTINGS) as client:
            answer: Any = await client.chat.completions.create(**asked("Plan a trip."))
        return str(answer.choices[0].message.content)

    body = asked("Plan a trip.")
    stock = as_stock(cluster, body)["message"]["content"]
    whole = openai_client.chat.completions.create(**body)
    chunks = list(
        openai_client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert [whole.choices[0].message.content, "".join(pieces), asyncio.run(whole_async())] == (
        [stock] * 3
    )
    assert chunks[-1].choices == []
    for usage in (whole.usage, chunks[-1].usage):
        assert (usage.completion_tokens, usage.prompt_tokens) == (12, whole.usage.prompt_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_with_every_token(
    cluster: Cluster, openai_client: openai.OpenAI, stream: bool
) -> None:
    body = asked(f"Count to ten, {stream}.", max_tokens=6, logprobs=True, top_logprobs=2)
    stock = as_stock(cluster, body)["logprobs"]["content"]
    if stream:
        chunks = openai_client.chat.completions.create(**body, stream=True)
        choices: Any = [chunk.choices[0] for chunk in chunks if chunk.choices]
        told = [each for choice in choices if choice.logprobs for each in choice.logprobs.content]
    else:
        told = openai_client.chat.completions.create(**body).choices[0].logprobs.content
    assert [each.token for each in told] == [each["token"] for each in stock]
    for each, expected in zip(told, stock, strict=True):
        assert each.logprob == pytest.approx(expected["logprob"], abs=1e-3)
        assert len(each.top_logprobs) == 2


def test_schema_is_followed(openai_client: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    body = asked("Pick a city.", response_format=schema, max_tokens=200)
    choice = openai_client.chat.completions.create(**body).choices[0]
    assert choice.finish_reason == "stop"
    assert json.loads(choice.message.content or "")["city"] in CITIES


def test_forced_tool_is_called_and_its_result_finds_the_conversation(
    openai_client: openai.OpenAI,
) -> None:
    function = {"name": "weather", "parameters": CITY, "strict": True}
    tools: Any = [{"type": "function", "function": function}]
    body = asked("How is the weather?", max_tokens=200, tools=tools, tool_choice=NAMED)
    with openai_client.chat.completions.stream(**body) as stream:
        message = stream.get_final_completion().choices[0].message
    called = city_of(message)
    body["messages"] += [
        {
            "role": "assistant",
            "tool_calls": [called.model_dump(exclude={"parsed_arguments": True})],
        },
        {"role": "tool", "tool_call_id": called.id, "content": "sunny"},
    ]
    raw = openai_client.chat.completions.with_raw_response.create(**body)
    assert raw.headers["x-conserve-reason"] == "pinned"
    answer = raw.parse()
    city_of(answer.choices[0].message)
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


def city_of(message: Any) -> Any:
    """The only call in a message, which names a city."""
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments)["city"] in CITIES
    return call


def test_messages_are_said_as_the_chat_they_are(
    cluster: Cluster, anthropic_client: anthropic.Anthropic
) -> None:
    system = {"role": "system", "content": "Be brief."}
    chat = asked("Plan a feast.")
    stock = as_stock(cluster, {**chat, "messages": [system, *chat["messages"]]})
    asks = asked_of_anthropic("Plan a feast.", system="Be brief.")
    message: Any = anthropic_client.messages.create(**asks)
    assert [block.text for block in message.content] == [stock["message"]["content"]]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 12)
    counted = anthropic_client.messages.count_tokens(
        model=MODEL_NAME, system="Be brief.", messages=chat["messages"]
    )
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_turns_of_an_anthropic_client_stay_on_one_decoder_whose_cache_they_read(
    anthropic_client: anthropic.Anthropic,
) -> None:
    body = asked_of_anthropic("Tell me of " + "a fox and a dog, " * 20)
    places, cached, prompts = [], [], []
    for _ in range(3):
        raw = anthropic_client.messages.with_raw_response.create(**body, stream=True)
        places.append((raw.headers["x-conserve-decoder"], raw.headers["x-conserve-reason"]))
        said, usage = told(raw.parse())
        cached.append(usage.cache_read_input_tokens)
        prompts.append(usage.input_tokens + usage.cache_read_input_tokens)
        body["messages"] += [
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
            {"role": "user", "content": "And then?"},
        ]
    decoder = places[0][0]
    assert places == [(decoder, "first_turn"), (decoder, "pinned"), (decoder, "pinned")]
    # All that was there after a turn is read from the cache by the next: prompt, and answer but
    # for its last token, which was never fed to the model.
    assert cached[1] >= prompts[0] + 11
    assert cached[2] >= prompts[1] + 11


def told(events: Any) -> tuple[str, Any]:
    """The text of a streamed message, and its last usage."""
    said, usage = "", None
    for event in events:
        if event.type == "content_block_delta":
            said += event.delta.text
        elif event.type == "message_delta":
            usage = event.usage
    return said, usage


@pytest.mark.parametrize("stream", [False, True])
def test_forced_tool_of_an_anthropic_client_is_called(
    anthropic_client: anthropic.Anthropic, stream: bool
) -> None:
    tool: Any = {"name": "weather", "input_schema": CITY, "strict": True}
    choice = {"type": "tool", "name": "weather"}
    body = asked_of_anthropic(
        "How is the weather?", max_tokens=200, tools=[tool], tool_choice=choice
    )
    body["messages"][0]["content"] += f" {stream}"
    if stream:
        with anthropic_client.messages.stream(**body) as events:
            message: Any = events.get_final_message()
    else:
        message = anthropic_client.messages.create(**body)
    (call,) = message.content
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
    assert call.input["city"] in CITIES
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    body["messages"] += [
        {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result]},
    ]
    again = anthropic_client.messages.with_raw_response.create(**{**body, "max_tokens": 2})
    assert again.headers["x-conserve-reason"] == "pinned"
