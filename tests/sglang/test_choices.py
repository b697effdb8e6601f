"""Several choices (`n`) of one turn on real SGLang pairs: they equal the stock server's, the KV
moves once, and the conversation goes on from there."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.sglang.cluster import MODEL_NAME, Cluster
from tests.sglang.decoder import ids
from tests.sglang.routers import Router, running_router, worker_name
from tests.sglang.talk import post
from tests.sglang.test_apis import CITY
from tests.sglang.test_conversations import named, rooms

pytestmark = pytest.mark.sglang

FIRST = "Plan a trip to a town I have never seen, and name what to eat there. "
either_way = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def router(cluster: Cluster) -> Iterator[Router]:
    with running_router(cluster, "choices", {"name": "conserve"}) as running:
        yield running


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def gpt(router: Router) -> Iterator[openai.OpenAI]:
    with client_of(router.url) as client:
        yield client


@pytest.fixture(scope="module")
def stock(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with client_of(cluster.url("ref")) as client:
        yield client


def said(client: openai.OpenAI, stream: bool, **asked: Any) -> tuple[list[str], Any]:
    """Each choice's text by its index, and the counts."""
    asked = {"model": MODEL_NAME, "max_tokens": 16, "temperature": 0, **asked}
    texts: dict[int, str] = {}
    if not stream:
        answer = client.chat.completions.create(**asked)
        texts = {choice.index: choice.message.content or "" for choice in answer.choices}
        return [texts[index] for index in sorted(texts)], answer.usage
    usage = None
    asked["stream_options"] = {"include_usage": True}
    for chunk in client.chat.completions.create(**asked, stream=True):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return [texts[index] for index in sorted(texts)], usage


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@either_way
@pytest.mark.parametrize("num", [2, 3])
def test_choices_equal_the_stock_server_and_the_kv_moves_once(
    gpt: openai.OpenAI, stock: openai.OpenAI, router: Router, stream: bool, num: int
) -> None:
    moved, before = rooms(router.cluster), router.loads()
    messages: Any = [user(f"{num} {stream} {FIRST * 20}")]
    ours, usage = said(gpt, stream, messages=messages, n=num)
    theirs, counted = said(stock, stream, messages=messages, n=num)
    assert ours == theirs
    assert len(ours) == num
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        counted.prompt_tokens,
        counted.completion_tokens,
    )
    assert rooms(router.cluster) - moved == 1
    # Its client goes on with the first of them: found by its history, where its KV is.
    messages += [{"role": "assistant", "content": ours[0]}, user("And then?")]
    for more in (1, num):
        ours, tail = said(gpt, stream, messages=messages, n=more)
        assert ours == said(stock, stream, messages=messages, n=more)[0]
        assert tail.prompt_tokens_details.cached_tokens >= usage.prompt_tokens
        messages += [{"role": "assistant", "content": ours[0]}, user("And after that?")]
    assert rooms(router.cluster) - moved == 1
    after = router.loads()
    grew = {name for name, value in after.items() if value > before.get(name, 0.0)}
    assert not [name for name in grew if "retries" in name or "failures" in name]
    transfers = "conserve_router_kv_transfers_total"
    assert after[transfers] - before.get(transfers, 0.0) == 1


@either_way
def test_any_choice_of_a_named_conversation_can_be_gone_on_with(
    gpt: openai.OpenAI, stock: openai.OpenAI, router: Router, stream: bool
) -> None:
    moved = rooms(router.cluster)
    name: Any = {"extra_headers": named(f"choices {stream}")}
    messages: Any = [user(f"{stream} Sampled. {FIRST * 20}")]
    ours, usage = said(gpt, stream, messages=messages, n=3, temperature=1, **name)
    assert len(ours) == 3
    messages += [{"role": "assistant", "content": ours[2]}, user("And then?")]
    last, tail = said(gpt, stream, messages=messages, **name)
    assert last == said(stock, stream, messages=messages)[0]
    assert tail.prompt_tokens_details.cached_tokens >= usage.prompt_tokens
    assert rooms(router.cluster) - moved == 1


@either_way
def test_every_choice_follows_the_response_format(
    gpt: openai.OpenAI, stock: openai.OpenAI, router: Router, stream: bool
) -> None:
    moved = rooms(router.cluster)
    schema = {"type": "json_schema", "json_schema": {"name": "pick", "schema": CITY}}
    asked: Any = {"messages": [user(f"Pick. {stream}")], "response_format": schema, "n": 3}
    ours, _ = said(gpt, stream, max_tokens=64, **asked)
    assert ours == said(stock, stream, max_tokens=64, **asked)[0]
    assert all(json.loads(text)["city"] in ("Paris", "Rome") for text in ours)
    assert len(ours) == 3
    assert rooms(router.cluster) - moved == 1


def test_text_completions(gpt: openai.OpenAI, stock: openai.OpenAI, router: Router) -> None:
    moved = rooms(router.cluster)
    asked: Any = {"model": MODEL_NAME, "prompt": f"Once. {FIRST * 20}", "n": 2, "max_tokens": 8}
    asked |= {"temperature": 0, "logprobs": 1}
    ours, theirs = (each.completions.create(**asked) for each in (gpt, stock))
    assert [each.text for each in ours.choices] == [each.text for each in theirs.choices]
    assert len(ours.choices) == 2
    assert ours.choices[1].logprobs is not None
    assert ours.choices[1].logprobs.tokens == theirs.choices[1].logprobs.tokens
    assert rooms(router.cluster) - moved == 1


def test_sglangs_own_endpoint(router: Router) -> None:
    moved, before = rooms(router.cluster), router.loads()
    params = {"n": 2, "temperature": 0, "max_new_tokens": 8, "min_new_tokens": 4}
    body = {"input_ids": ids(900, 77), "sampling_params": params}
    status, ours, headers = post(f"{router.url}/generate", body, {})
    theirs = post(f"{router.cluster.url('ref')}/generate", body, {})[1]
    assert (status, headers["x-conserve-prefiller"]) == (200, worker_name("p0"))
    assert [each["output_ids"] for each in ours] == [each["output_ids"] for each in theirs]
    assert len(ours) == 2
    assert rooms(router.cluster) - moved == 1
    told = "conserve_router_output_tokens_total"
    assert router.loads()[told] - before.get(told, 0.0) == 16


def test_stock_pd_moves_the_kv_once_a_turn(cluster: Cluster, stock: openai.OpenAI) -> None:
    messages: Any = [user(f"Every turn. {FIRST * 20}")]
    with (
        running_router(cluster, "choices-stock-pd", {"name": "stock-pd"}) as router,
        client_of(router.url) as client,
    ):
        for turn in range(2):
            moved = rooms(cluster)
            ours, _ = said(client, False, messages=messages, n=2)
            assert ours == said(stock, False, messages=messages, n=2)[0]
            assert rooms(cluster) - moved == 1
            messages += [{"role": "assistant", "content": ours[1]}, user(f"And then? {turn}")]
