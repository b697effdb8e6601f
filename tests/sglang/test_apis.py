"""The APIs that agents use, with their official clients, on real SGLang servers.

The model is random: it calls a tool only where it is made to, and then fills in what a strict
schema allows. Several calls in one answer, and thoughts, are seen with the fake worker only.
"""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.sglang.cluster import MODEL_NAME, Cluster
from tests.sglang.routers import Router, running_router
from tests.sglang.test_conversations import rooms

pytestmark = pytest.mark.sglang

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
GREEDY: Any = {"temperature": 0}
FIRST = "Plan a trip to a town I have never seen, and name what to eat there."


@pytest.fixture(scope="module")
def router(cluster: Cluster) -> Iterator[Router]:
    with running_router(cluster, "apis", {"name": "conserve"}) as running:
        yield running


@pytest.fixture(scope="module")
def claude(router: Router) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=router.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(router: Router) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def stock(cluster: Cluster) -> Iterator[openai.OpenAI]:
    url = f"{cluster.url('ref')}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def said_by(stock: openai.OpenAI, messages: Any, count: int) -> str:
    """What the stock server answers."""
    answer = stock.chat.completions.create(
        model=MODEL_NAME, messages=messages, max_tokens=count, temperature=0
    )
    return answer.choices[0].message.content or ""


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("stream", [False, True])
def test_messages_of_a_conversation_equal_the_stock_server_and_its_kv_moves_once(
    claude: anthropic.Anthropic, stock: openai.OpenAI, cluster: Cluster, stream: bool
) -> None:
    system = f"You are brief. {stream}"
    messages: Any = []
    moved = rooms(cluster)
    reasons, context = [], 0
    for turn in range(4):
        messages.append({"role": "user", "content": [{"type": "text", "text": f"{FIRST} {turn}"}]})
        asked: Any = {"model": MODEL_NAME, "max_tokens": 24, "messages": messages}
        asked |= {"system": system, "extra_body": GREEDY}
        if stream:
            with claude.messages.stream(**asked) as events:
                message: Any = events.get_final_message()
                headers = events.response.headers
        else:
            raw = claude.messages.with_raw_response.create(**asked)
            message, headers = raw.parse(), raw.headers
        reasons.append(headers["x-conserve-reason"])
        usage = message.usage
        assert usage.cache_read_input_tokens >= context - 1
        context = usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens
        plain = [{"role": "system", "content": system}]
        plain += [{"role": m["role"], "content": _plain(m["content"])} for m in messages]
        assert text_of(message) == said_by(stock, plain, 24)
        messages.append({"role": "assistant", "content": message.content})
    assert reasons == ["first_turn", "pinned", "pinned", "pinned"]
    assert rooms(cluster) - moved == 1


def _plain(content: Any) -> str:
    parts = (part if isinstance(part, dict) else part.to_dict() for part in content)
    return "".join(part["text"] for part in parts)


@pytest.mark.parametrize("stream", [False, True])
def test_forced_tool_is_called_and_its_result_is_a_local_turn(
    claude: anthropic.Anthropic, stream: bool
) -> None:
    tool: Any = {"name": "weather", "input_schema": CITY, "strict": True}
    messages: Any = [{"role": "user", "content": f"What is the weather? {stream}"}]
    asked: Any = {"model": MODEL_NAME, "max_tokens": 200, "tools": [tool], "extra_body": GREEDY}
    force: Any = {"type": "tool", "name": "weather"}
    if stream:
        with claude.messages.stream(**asked, messages=messages, tool_choice=force) as events:
            message: Any = events.get_final_message()
    else:
        message = claude.messages.create(**asked, messages=messages, tool_choice=force)
    call = message.content[-1]
    assert message.stop_reason == "tool_use"
    assert (call.type, call.name) == ("tool_use", "weather")
    assert call.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain", "is_error": False}
    messages += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    raw = claude.messages.with_raw_response.create(**asked, messages=messages)
    assert raw.headers["x-conserve-reason"] == "pinned"
    assert raw.parse().usage.cache_read_input_tokens > 0


def test_counted_tokens_are_those_of_the_prompt(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "weather", "input_schema": CITY}
    asked: Any = {"model": MODEL_NAME, "tools": [tool], "system": "Be brief."}
    asked["messages"] = [{"role": "user", "content": "Where am I?"}]
    counted = claude.messages.count_tokens(**asked).input_tokens
    usage = claude.messages.create(**asked, max_tokens=2).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL_NAME, "max_tokens": 200, "extra_body": GREEDY}
    asked["messages"] = [{"role": "user", "content": "Tell me of stops."}]
    said = text_of(claude.messages.create(**asked))
    stop = said[5]
    message = claude.messages.create(**asked, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == said[: said.index(stop)]


def test_answer_begun_by_the_client_goes_on(
    claude: anthropic.Anthropic, stock: openai.OpenAI
) -> None:
    messages: Any = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}]
    asked: Any = {"model": MODEL_NAME, "max_tokens": 9, "messages": messages}
    message = claude.messages.create(**asked, extra_body=GREEDY)
    answer = stock.chat.completions.create(
        **asked, temperature=0, extra_body={"continue_final_message": True}
    )
    assert text_of(message) == answer.choices[0].message.content


def test_output_format_is_followed(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL_NAME, "max_tokens": 200}
    asked["output_config"] = {"format": {"type": "json_schema", "schema": CITY}}
    message = claude.messages.create(**asked, messages=[{"role": "user", "content": "Pick."}])
    assert message.stop_reason == "end_turn"
    assert text_of(message) in ('{"city":"Paris"}', '{"city":"Rome"}', '{"city": "Paris"}',
                                '{"city": "Rome"}')  # fmt: skip


def test_prompt_over_the_context_is_refused_in_this_apis_shape(
    claude: anthropic.Anthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="Shorten the prompt"):
        claude.messages.create(
            model=MODEL_NAME, max_tokens=2, messages=[{"role": "user", "content": "x " * 40_000}]
        )


def test_chat_with_logprobs_equals_the_stock_server(
    gpt: openai.OpenAI, stock: openai.OpenAI
) -> None:
    asked: Any = {"model": MODEL_NAME, "max_tokens": 4, "temperature": 0, "top_logprobs": 2}
    asked |= {"messages": [{"role": "user", "content": "How likely?"}], "logprobs": True}
    ours, theirs = (each.chat.completions.create(**asked).choices[0] for each in (gpt, stock))
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    assert ours.message.content == theirs.message.content
    for mine, other in zip(ours.logprobs.content or (), theirs.logprobs.content or (), strict=True):
        assert mine.token == other.token
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert len(mine.top_logprobs) == 2


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "go"}}])
def test_chat_calls_a_tool_when_it_must(gpt: openai.OpenAI, choice: Any) -> None:
    tool: Any = {"type": "function", "function": {"name": "go", "parameters": CITY, "strict": True}}
    asked: Any = {"model": MODEL_NAME, "max_tokens": 200, "tools": [tool], "tool_choice": choice}
    asked |= {"messages": [{"role": "user", "content": "Go!"}], "parallel_tool_calls": False}
    with gpt.chat.completions.stream(**asked, temperature=0) as stream:
        streamed: Any = stream.get_final_completion().choices[0]
    whole: Any = gpt.chat.completions.create(**asked, temperature=0).choices[0]
    answer: Any
    for answer in (streamed, whole):
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert call.type == "function"
        assert '"city"' in call.function.arguments


def test_chat_follows_a_schema_and_counts_its_stream(gpt: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    asked: Any = {"model": MODEL_NAME, "max_tokens": 100, "response_format": schema}
    asked |= {"messages": [{"role": "user", "content": "Pick one."}], "temperature": 0}
    whole = gpt.chat.completions.create(**asked)
    options: Any = {"include_usage": True}
    chunks = list(gpt.chat.completions.create(**asked, stream=True, stream_options=options))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    counted, expected = chunks[-1].usage, whole.usage
    assert counted is not None
    assert expected is not None
    assert counted.completion_tokens == expected.completion_tokens
    assert counted.prompt_tokens == expected.prompt_tokens


def test_several_choices_are_refused_at_once(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as several:
        gpt.chat.completions.create(
            model=MODEL_NAME, n=2, messages=[{"role": "user", "content": "Twice."}]
        )
    assert several.value.code == "one_choice_only"


def test_completion_of_one_prompt_in_a_list(gpt: openai.OpenAI, stock: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL_NAME, "prompt": ["once upon"], "max_tokens": 8, "temperature": 0}
    ours, theirs = (each.completions.create(**asked) for each in (gpt, stock))
    assert ours.choices[0].text == theirs.choices[0].text
    assert ours.usage is not None
    assert ours.usage.completion_tokens == 8


@pytest.mark.parametrize("stream", [False, True])
def test_responses_go_on_with_their_conversation(
    gpt: openai.OpenAI, stock: openai.OpenAI, cluster: Cluster, stream: bool
) -> None:
    moved = rooms(cluster)
    messages: Any = []
    previous, context = None, 0
    for turn in range(3):
        text = f"{FIRST} As for response {turn} {stream}"
        asked: Any = {"model": MODEL_NAME, "input": text, "max_output_tokens": 16}
        asked |= {"temperature": 0, "previous_response_id": previous}
        if stream:
            *_, last = gpt.responses.create(**asked, stream=True)
            response: Any = last.response
        else:
            response = gpt.responses.create(**asked)
        messages.append({"role": "user", "content": text})
        assert response.output_text == said_by(stock, messages, 16)
        assert response.usage.output_tokens == 16
        assert response.usage.input_tokens_details.cached_tokens >= context - 1
        context = response.usage.total_tokens
        messages.append({"role": "assistant", "content": response.output_text})
        previous = response.id
    assert rooms(cluster) - moved == 1
