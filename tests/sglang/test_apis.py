"""Translated conversations on real SGLang servers: what is said equals the stock server's chat,
and the KV moves once. Tools, counts and log probabilities are in `test_clients.py`."""

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


@pytest.mark.parametrize("stream", [False, True])
def test_response_of_real_workers_is_told_again_with_what_it_was_given(
    gpt: openai.OpenAI, stream: bool
) -> None:
    asked: Any = {"model": MODEL_NAME, "max_output_tokens": 16, "temperature": 0}
    first = gpt.responses.create(**asked, input=f"{FIRST} Again {stream}")
    asked |= {"input": "And then?", "previous_response_id": first.id}
    if stream:
        *_, last = gpt.responses.create(**asked, stream=True)
        second: Any = last.response
    else:
        second = gpt.responses.create(**asked)
    for answered in (first, second):
        assert gpt.responses.retrieve(answered.id).to_dict() == answered.to_dict()
    items: Any = list(gpt.responses.input_items.list(second.id, order="asc", limit=2))
    said = [item.content[0].text for item in items]
    assert said == [f"{FIRST} Again {stream}", first.output_text, "And then?"]
    assert items[1].id == first.output[0].id
    gpt.responses.delete(first.id)
    for act in (gpt.responses.retrieve, gpt.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            act(first.id)
