import json
from typing import Any

import pytest

from conserve_sglang.router.messages import (
    canonical_messages,
    chat_answer,
    completion_answer,
    generated_answer,
)


def canonical(message: dict[str, Any]) -> bytes:
    (only,) = canonical_messages(json.dumps([message]).encode()) or [b""]
    return only


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1,"b":2}'}}
RESTYLED = {"id": "c1", "function": {"name": "f", "arguments": '{ "b": 2, "a": 1 }'}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "x"}, {"role": "user", "content": "x", "name": "n"}),
        (
            {"role": "user", "content": "ab"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [RESTYLED], "refusal": None},
        ),
        ({"role": "assistant", "content": "x\n"}, {"role": "assistant", "content": "x"}),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "assistant", "content": "x"}, {"role": "assistant", "content": "x",
                                                  "reasoning_content": "thought"}),
    ],
)  # fmt: skip
def test_same_message_in_other_words(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "x"}, {"role": "user", "content": "y"}),
        ({"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}),
        (
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "tool", "content": "x", "tool_call_id": "2"},
        ),
        (
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "assistant", "tool_calls": [{**CALL, "id": "c2"}]},
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b"}}]},
        ),
    ],
)
def test_other_messages_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize("raw", [b"[1]", b'[{"content":"x"}]', b'[{"role":"user","content":5}]'])
def test_what_is_no_message_is_left_alone(raw: bytes) -> None:
    assert canonical_messages(raw) is None


def stream(*deltas: dict[str, Any]) -> bytes:
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    datas = [json.dumps(event) for event in events] + ["[DONE]"]
    return "".join(f"data: {data}\n\n" for data in datas).encode()


def test_streamed_answer_is_the_message_that_comes_back() -> None:
    body = stream(
        {"role": "assistant", "content": ""},
        {"content": "let me "},
        {"content": "look"},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1,'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"b":2}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g"}}]},
    )
    back = {
        "role": "assistant",
        "content": "let me look",
        "tool_calls": [CALL, {"id": "c2", "function": {"name": "g", "arguments": "{}"}}],
    }
    assert chat_answer(body, is_stream=True) == canonical(back)


def test_whole_answer_is_the_message_that_comes_back() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
    assert chat_answer(body, is_stream=False) == canonical(message)


def test_completion_and_generated_answers() -> None:
    body = b'data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\n'
    assert completion_answer(body + b"data: [DONE]\n\n", is_stream=True) == "ab"
    assert completion_answer(b'{"choices":[{"text":"ab"}]}', is_stream=False) == "ab"
    events = b'data: {"text":"a","output_ids":[1]}\n\ndata: {"text":"ab","output_ids":[1,2]}\n\n'
    assert generated_answer(events + b"data: [DONE]\n\n", is_stream=True) == ("ab", [1, 2])


def test_first_of_several_generated_answers() -> None:
    whole = b'[{"text":"ab","output_ids":[1,2]},{"text":"cd","output_ids":[3,4]}]'
    assert generated_answer(whole, is_stream=False) == ("ab", [1, 2])
    one, other = (b'data: {"text":"%b","output_ids":[%d],"index":%d}\n\n' % each
                  for each in ((b"a", 1, 0), (b"c", 3, 1)))  # fmt: skip
    assert generated_answer(one + other + b"data: [DONE]\n\n", is_stream=True) == ("a", [1])
    assert generated_answer(other + b"data: [DONE]\n\n", is_stream=True) is None
    assert generated_answer(b"[]", is_stream=False) is None


@pytest.mark.parametrize("body", [b"", b"garbage", b'{"choices":[]}', b'{"choices":3}'])
def test_unreadable_answer_is_none(body: bytes) -> None:
    assert chat_answer(body, is_stream=False) is None
