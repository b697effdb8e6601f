"""Chat answers as messages: the corners that a whole conversation does not reach."""

import json
from typing import Any

import pytest

from conserve_sglang.router.anthropic import MessagesCall
from conserve_sglang.router.translation import UnreadableAnswer

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def a_call(stream: bool = True) -> MessagesCall:
    call = MessagesCall("req_1")
    body = {"model": "m", "max_tokens": 5, "messages": [], "stream": stream}
    call.read(json.dumps(body).encode())
    return call


def chunk(usage: Any = None, **choice: Any) -> bytes:
    choices = [{"index": 0, "delta": {}, "finish_reason": None, **choice}] if choice else []
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


def said(text: str) -> bytes:
    return chunk(delta={"content": text, "reasoning_content": None})


def called(index: int, name: str | None, arguments: str) -> bytes:
    function = {"name": name, "arguments": arguments}
    call = {"index": index, "id": name and f"id-{name}", "function": function}
    return chunk(delta={"tool_calls": [call]})


def events(told: bytes) -> list[Any]:
    assert told == b"" or told.endswith(b"\n\n")
    found = []
    for event in told.decode().split("\n\n")[:-1]:
        name, _, data = event.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


END = chunk(finish_reason="stop", matched_stop=1) + chunk(usage=USAGE) + b"data: [DONE]\n\n"


def test_counts_are_told_apart_at_both_ends() -> None:
    call = a_call()
    start, ping = events(call.feed(chunk(usage=USAGE, delta={"content": "a"}), False))[:2]
    assert ping == {"type": "ping"}
    assert start["message"]["usage"] == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 8,
        "output_tokens": 0,
    }
    end = events(call.feed(END, True))[-2]
    assert end["usage"] == {**start["message"]["usage"], "output_tokens": 3}


def test_nothing_is_told_before_there_is_something_to_say() -> None:
    call = a_call()
    assert call.feed(chunk(delta={"role": "assistant", "content": ""}), False) == b""
    assert call.feed(b"data: {", False) == b""


def test_empty_answer_is_a_message_without_blocks() -> None:
    told = events(a_call().feed(said("") + END, True))
    kinds = [event["type"] for event in told]
    assert kinds == ["message_start", "ping", "message_delta", "message_stop"]


def test_every_split_of_the_stream_tells_the_same() -> None:
    stream = said('"ä\n') + called(0, "f", '{"a"') + called(0, None, ":1}") + END
    whole = events(a_call().feed(stream, True))[1:]
    for step in range(1, 40):
        call = a_call()
        told = b"".join(
            call.feed(stream[at : at + step], at + step >= len(stream))
            for at in range(0, len(stream), step)
        )
        assert events(told)[1:] == whole


def test_pieces_of_two_calls_at_once_go_to_their_own_blocks() -> None:
    stream = called(0, "f", "") + called(1, "g", "{}") + called(0, None, '{"a":1}') + END
    told = events(a_call().feed(stream, True))
    starts = [event for event in told if event["type"] == "content_block_start"]
    assert [(event["index"], event["content_block"]["name"]) for event in starts] == [
        (0, "f"),
        (1, "g"),
    ]
    pieces = [event for event in told if event["type"] == "content_block_delta"]
    assert [(piece["index"], piece["delta"]["partial_json"]) for piece in pieces] == [
        (1, "{}"),
        (0, '{"a":1}'),
    ]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"


def test_white_space_between_calls_opens_no_block_but_text_does() -> None:
    stream = called(0, "f", "{}") + said("\n") + called(1, "g", "{}") + said("so") + END
    told = events(a_call().feed(stream, True))
    starts = [event for event in told if event["type"] == "content_block_start"]
    assert [event["content_block"]["type"] for event in starts] == ["tool_use", "tool_use", "text"]


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {nonsense\n\n",
        b'data: {"error":{"message":"too bad","code":500}}\n\n',
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":{}}}]}\n\n',
        b'data: {"choices":[{"delta":{"reasoning_content":1}}]}\n\n',
        chunk(finish_reason="abort") + b"data: [DONE]\n\n",
    ],
)
def test_stream_that_goes_wrong_ends_with_one_error(bad: bytes) -> None:
    call = a_call()
    told = events(call.feed(said("a") + bad + said("b") + END, True))
    assert told[-1]["type"] == "error"
    assert [event["type"] for event in told].count("error") == 1
    assert "message_stop" not in {event["type"] for event in told}
    assert told[-1]["request_id"].startswith("req_")


def test_status_of_an_error_in_the_stream_gives_its_type() -> None:
    busy = b'data: {"error":{"message":"full","code":429}}\n\n'
    assert events(a_call().feed(busy, False))[-1]["error"]["type"] == "rate_limit_error"


def test_stream_without_an_end_is_an_error() -> None:
    assert events(a_call().feed(said("a"), True))[-1]["type"] == "error"


def test_arguments_cut_off_by_the_limit_are_an_empty_object() -> None:
    call = {"id": "t", "function": {"name": "f", "arguments": '{"a": "b'}}
    message = {"content": None, "tool_calls": [call]}
    choice = {"message": message, "finish_reason": "length"}
    body = json.dumps({"choices": [choice], "usage": USAGE}).encode()
    told = json.loads(a_call(stream=False).feed(body, True))
    assert told["content"] == [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]
    assert told["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}",
        b'{"choices":[{}]}',
        b'{"choices":[{"message":{},"finish_reason":"abort"}]}',
    ],
)
def test_whole_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    call = a_call(stream=False)
    assert call.feed(body[:1], False) == b""
    with pytest.raises(UnreadableAnswer):
        call.feed(body[1:], True)
