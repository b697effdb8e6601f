"""What is kept of a request for several choices, and how its answer is counted."""

import json
from typing import Any

import pytest

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.choices import Choices
from conserve_sglang.router.payload import BadBody, Endpoint, num_choices, read_payload
from conserve_sglang.router.salt import Salts
from conserve_sglang.workers.usage import Usage

TENANT = TenantId("a")
HELLO = [{"role": "user", "content": "hello"}]


def priming(endpoint: Endpoint, body: dict[str, Any], salts: Salts | None = None) -> dict[str, Any]:
    """The body that has the KV moved."""
    salt = None if salts is None else salts.of(TENANT)
    payload = read_payload(endpoint, json.dumps(body).encode(), salt)
    primed = Choices(2, payload.fields).priming(payload)
    assert not primed.is_stream
    sent: dict[str, Any] = json.loads(b"{" + primed.inserts + bytes(primed.rest))
    return sent


def num_in(endpoint: Endpoint, body: dict[str, Any]) -> int:
    return num_choices(read_payload(endpoint, json.dumps(body).encode()))


@pytest.mark.parametrize(("n", "num"), [(1, 1), (None, 1), (2, 2), (128, 128)])
def test_choices_are_counted_in_every_api(n: int | None, num: int) -> None:
    assert num_in(Endpoint.CHAT, {"messages": HELLO, "n": n}) == num
    assert num_in(Endpoint.COMPLETION, {"prompt": "a", "n": n, "best_of": n}) == num
    assert num_in(Endpoint.GENERATE, {"text": "a", "sampling_params": {"n": n}}) == num
    assert num_in(Endpoint.GENERATE, {"text": "a", "n": 3}) == 1  # means nothing there


@pytest.mark.parametrize("n", [0, -1, 129, 10**20, 2.0, "2", True, [2], {}])
def test_what_is_no_number_of_choices_is_refused(n: Any) -> None:
    for endpoint, body in (
        (Endpoint.CHAT, {"messages": HELLO, "n": n}),
        (Endpoint.GENERATE, {"text": "a", "sampling_params": {"n": n}}),
    ):
        with pytest.raises(BadBody, match="a whole number from 1 to 128") as bad:
            num_in(endpoint, body)
        assert (bad.value.problem.code, bad.value.problem.param) == ("wrong_type", "n")


def test_best_of_more_than_are_answered_is_refused() -> None:
    for n in (None, 1, 2):
        with pytest.raises(BadBody, match="as large as 'n'") as bad:
            num_in(Endpoint.COMPLETION, {"prompt": "a", "n": n, "best_of": 3})
        assert bad.value.problem.code == "best_of_not_served"
    assert num_in(Endpoint.COMPLETION, {"prompt": "a", "n": 3, "best_of": 3}) == 3


def test_sampling_params_are_one_object() -> None:
    said_nothing: list[dict[str, Any]] = [{}, {"sampling_params": None}, {"sampling_params": {}}]
    for nothing in said_nothing:
        assert num_in(Endpoint.GENERATE, {"text": "a", **nothing}) == 1
    with pytest.raises(BadBody, match="one object"):
        num_in(Endpoint.GENERATE, {"text": "a", "sampling_params": [{"n": 2}]})


def test_priming_keeps_what_makes_the_prompt() -> None:
    kept = {
        "model": "tiny:adapter",
        "messages": HELLO,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "none",
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.7,
    }
    dropped = {
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": False},
        "logprobs": True,
        "top_logprobs": 3,
        "max_completion_tokens": 900,
        "min_tokens": 5,
    }
    assert priming(Endpoint.CHAT, {**kept, **dropped}) == {**kept, "max_tokens": 1}
    assert priming(Endpoint.CHAT, {**kept, "n": 2, "stream": True}) == {**kept, "max_tokens": 1}
    prompt = {"prompt": [1, 2, 3], "seed": 7}
    asked = {**prompt, "n": 2, "best_of": 2, "echo": True, "max_tokens": 9}
    assert priming(Endpoint.COMPLETION, asked) == {**prompt, "max_tokens": 1}


def test_priming_of_sglangs_own_endpoint() -> None:
    params = {"n": 2, "max_new_tokens": 9, "min_new_tokens": 3, "temperature": 0, "stop": ["x"]}
    asked = {"input_ids": [1, 2], "sampling_params": params, "stream": True}
    asked |= {"return_logprob": True, "logprob_start_len": 0, "lora_path": "l"}
    assert priming(Endpoint.GENERATE, asked) == {
        "input_ids": [1, 2],
        "lora_path": "l",
        "sampling_params": {"max_new_tokens": 1, "temperature": 0, "stop": ["x"]},
    }


@pytest.mark.parametrize("said", [{}, {"cache_salt": "own", "conversation_id": "c", "rid": "r"}])
def test_priming_stays_within_the_tenants_kv(said: dict[str, str]) -> None:
    body = {"messages": HELLO, "n": 2, "stream": True, **said}
    salts = Salts(b"secret")
    whole = read_payload(Endpoint.CHAT, json.dumps(body).encode(), salts.of(TENANT))
    asked = json.loads(b"{" + whole.inserts + bytes(whole.rest))
    primed = priming(Endpoint.CHAT, body, salts)
    assert primed["extra_key"] == asked["extra_key"]
    assert set(primed) == {"extra_key", "messages", "max_tokens"}


def test_counts_are_of_all_choices_and_of_one() -> None:
    choices = Choices(3, {})
    usage = choices.counted(Usage(50, 31, 49), None, is_stream=False)
    assert (usage.output_tokens, usage.cached_tokens) == (31, 49)
    assert choices.one_of(usage) == Usage(50, 11, 49)
    choices.cached_tokens = 16  # at the prefiller; the decoder got all of it by transfer
    assert choices.counted(Usage(50, 31, 49), None, is_stream=False).cached_tokens == 16


def test_sglangs_own_answers_count_each_choice_by_itself() -> None:
    def one(index: int, count: int) -> dict[str, Any]:
        return {"text": "", "index": index, "meta_info": {"completion_tokens": count}}

    choices, last = Choices(2, {}), Usage(50, 4, 0)
    whole = json.dumps([one(0, 9), one(1, 4)]).encode()
    assert choices.counted(last, whole, is_stream=False).output_tokens == 13
    events = [one(0, 1), one(1, 1), one(0, 9), one(1, 4)]
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    assert choices.counted(last, stream + b"data: [DONE]\n\n", is_stream=True).output_tokens == 13
    assert choices.counted(last, b"[garbage", is_stream=False).output_tokens == 4
    assert choices.counted(last, b"data: {garbage\n\n", is_stream=True).output_tokens == 4
