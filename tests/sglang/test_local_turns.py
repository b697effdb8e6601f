"""Local turns on a real decode server: what they answer, how they are refused and how they end."""

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conserve_sglang.core.local_turn import LocalLimits, Refusal, RefusalReason
from tests.sglang.cluster import CHUNKED_PREFILL_SIZE, DECODE, Cluster
from tests.sglang.decoder import Decoder, ids, raw_post
from tests.sglang.talk import post

pytestmark = pytest.mark.sglang

ASKS: dict[str, dict[str, Any]] = {
    "/generate": {"text": "hello there my friend", "sampling_params": {"max_new_tokens": 4}},
    "/v1/chat/completions": {
        "model": "tiny-qwen3",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 4,
    },
    "/v1/completions": {"model": "tiny-qwen3", "prompt": "hello there", "max_tokens": 4},
}
LIMITS = {
    RefusalReason.APPEND_TOO_LARGE: LocalLimits(max_uncached=1, min_cached=0),
    RefusalReason.PREFIX_MISSING: LocalLimits(max_uncached=1000, min_cached=900),
}


@pytest.fixture
def decoder(cluster: Cluster) -> Iterator[Decoder]:
    """A decoder with an empty cache, which must be idle and free of leaks afterwards."""
    decoder = Decoder(cluster, "d0")
    decoder.flush()
    yield decoder
    assert_no_leak(decoder)


def assert_no_leak(decoder: Decoder) -> None:
    assert decoder.flush() == 200
    assert decoder.capability()["resident_tokens"] == 0
    assert "leak" not in decoder.log().lower().replace("memory_leak", "")


def marked(
    path: str, body: dict[str, Any], limits: LocalLimits
) -> tuple[dict[str, Any], dict[str, str]]:
    """A request with the mark where its endpoint reads it: body and headers."""
    key = limits.to_routing_key()
    if path == "/generate":
        return {**body, "routing_key": key}, {}
    return body, {"x-smg-routing-key": key}


def converse(decoder: Decoder, seed: int, turns: int = 4) -> list[tuple[list[int], list[int]]]:
    """One conversation, its tail served locally if its prefix is there; prompts and answers."""
    rng = random.Random(seed)
    prompt = ids(rng.randrange(50, 300), seed)
    said = [(list(prompt), decoder.by_transfer(prompt, rng.randrange(4, 40)))]
    for turn in range(1, turns):
        prompt += said[-1][1]
        held = len(prompt)
        prompt += ids(rng.randrange(5, 300), seed * 100 + turn)
        count = rng.randrange(4, 60)
        limits = LocalLimits(max_uncached=600, min_cached=held - 2)
        status, answer = decoder.locally(prompt, count, limits)
        assert status in {200, 409}, answer
        output = answer["output_ids"] if status == 200 else decoder.by_transfer(prompt, count)
        said.append((list(prompt), output))
    return said


def assert_as_reference(decoder: Decoder, said: list[tuple[list[int], list[int]]]) -> None:
    for prompt, output in said:
        assert output == decoder.reference(prompt, len(output))


def test_a_local_turn_answers_as_the_stock_server_and_computes_only_what_is_new(
    decoder: Decoder,
) -> None:
    prompt = ids(300, 1)
    prompt += decoder.by_transfer(prompt)
    held = len(prompt)
    prompt += ids(60, 2)
    status, answer = decoder.locally(
        prompt, limits=LocalLimits(max_uncached=62, min_cached=held - 1)
    )
    assert status == 200
    assert answer["meta_info"]["cached_tokens"] >= held - 1
    assert answer["output_ids"] == decoder.reference(prompt)


def test_an_append_longer_than_a_chunk_answers_as_the_stock_server(decoder: Decoder) -> None:
    prompt = ids(100, 3)
    prompt += decoder.by_transfer(prompt) + ids(3 * CHUNKED_PREFILL_SIZE + 7, 4)
    status, answer = decoder.locally(prompt)
    assert status == 200
    assert answer["output_ids"] == decoder.reference(prompt)


def test_conversations_side_by_side_answer_as_the_stock_server(decoder: Decoder) -> None:
    with ThreadPoolExecutor(8) as clients:
        said = list(clients.map(lambda seed: converse(decoder, seed), range(100, 108)))
    for conversation in said:
        assert_as_reference(decoder, conversation)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reason", list(RefusalReason))
@pytest.mark.parametrize("path", list(ASKS))
def test_a_refusal_reaches_the_router(
    decoder: Decoder, path: str, reason: RefusalReason, is_stream: bool
) -> None:
    body, headers = marked(path, {**ASKS[path], "stream": is_stream}, LIMITS[reason])
    status, text = raw_post(f"{decoder.url}{path}", body, headers)
    first_event = text.split("\n\n")[0]
    refusal = Refusal.from_message(first_event)
    assert refusal is not None
    assert refusal.reason is reason
    assert status == (200 if is_stream else 409)
    if is_stream:
        assert text.split("\n\n")[1:] == ["data: [DONE]", ""]
    else:
        assert json.loads(text)["code"] == 409


def test_a_flushed_prefix_is_refused_as_missing(decoder: Decoder) -> None:
    prompt = ids(200, 5)
    prompt += decoder.by_transfer(prompt)
    decoder.flush()
    limits = LocalLimits(max_uncached=1000, min_cached=len(prompt) - 2)
    status, answer = decoder.locally(prompt + ids(10, 6), limits=limits)
    assert status == 409
    assert "reason=prefix_missing cached=0" in answer["message"]


@pytest.mark.parametrize("path", list(ASKS))
def test_an_unmarked_request_gets_the_stock_answer(decoder: Decoder, path: str) -> None:
    status, text = raw_post(f"{decoder.url}{path}", ASKS[path])
    assert status == 400
    assert "without bootstrap room id" in text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_mark_holds_for_several_answers(decoder: Decoder, path: str) -> None:
    limits = LocalLimits(max_uncached=1000, min_cached=0)
    body, headers = marked(path, {**ASKS[path], "n": 2}, limits)
    status, answer, _ = post(f"{decoder.url}{path}", body, headers)
    assert status == 200
    assert len(answer["choices"]) == 2


def test_a_local_turn_under_a_json_schema_answers_as_the_stock_server(decoder: Decoder) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    )
    prompt = ids(100, 7)
    prompt += decoder.by_transfer(prompt) + ids(20, 8)
    status, answer = decoder.locally(prompt, 32, json_schema=schema)
    assert status == 200
    assert answer["output_ids"] == decoder.reference(prompt, 32, json_schema=schema)


def test_local_turns_can_be_aborted_wherever_they_are(decoder: Decoder) -> None:
    """Long prompts, so that some are queued, one is between chunks and the rest run."""
    with ThreadPoolExecutor(6) as clients:
        runs = [
            clients.submit(
                decoder.locally, ids(6000, 20 + i), 400, rid=f"turn-{i}", ignore_eos=True
            )
            for i in range(6)
        ]
        seen = wait_for_queue(decoder)
        for i in range(6):
            raw_post(f"{decoder.url}/abort_request", {"rid": f"turn-{i}"})
        reasons = [run.result()[1]["meta_info"]["finish_reason"]["type"] for run in runs]
    assert seen > 6000
    assert set(reasons) == {"abort"}


def test_a_running_local_turn_can_be_aborted(decoder: Decoder) -> None:
    with ThreadPoolExecutor(1) as client:
        run = client.submit(decoder.locally, ids(50, 30), 5000, rid="running", ignore_eos=True)
        time.sleep(1.0)
        raw_post(f"{decoder.url}/abort_request", {"rid": "running"})
        status, answer = run.result()
    assert status == 200
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < answer["meta_info"]["completion_tokens"] < 5000


def wait_for_queue(decoder: Decoder) -> int:
    """Wait until queued local turns show in the load report; their uncached tokens."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        tokens = int(decoder.load()["num_waiting_uncached_tokens"])
        if tokens > 6000:
            return tokens
        time.sleep(0.02)
    return 0


def test_retracted_local_turns_answer_as_the_stock_server(cluster: Cluster) -> None:
    """Retraction forced every few steps, in a pool so small that it happens by itself as well."""
    cluster.add(
        "tight",
        DECODE,
        flags=("--max-total-tokens", "5000", "--chunked-prefill-size", "256"),
        env={"SGLANG_TEST_RETRACT": "1"},
    )
    try:
        decoder = Decoder(cluster, "tight")
        with ThreadPoolExecutor(10) as clients:
            said = list(clients.map(lambda seed: converse(decoder, seed), range(200, 214)))
        for conversation in said:
            assert_as_reference(decoder, conversation)
        log = decoder.log()
        assert "Testing retraction" in log or "Retract requests" in log
        assert "it starts over" in log
        assert_no_leak(decoder)
    finally:
        cluster.remove("tight")
