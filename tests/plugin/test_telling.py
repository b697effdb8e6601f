"""Which streams tell their ids, and how."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from conserve_sglang.plugin import continuing
from conserve_sglang.plugin.telling import Told, is_to_be_told, why_not_resumable
from tests.plugin.stub import inside

ASKS = SimpleNamespace(headers={"x-conserve-tell": "ids"})
ASKS_NOT = SimpleNamespace(headers={})


def a_manager(**fields: Any) -> Any:
    plain = {
        "preferred_sampling_params": None,
        "incremental_streaming_output": False,
        "tokenizer": object(),
    }
    return SimpleNamespace(**plain | fields)


def a_request(**fields: Any) -> Any:
    plain = {"rid": None, "text": "x", "sampling_params": {"temperature": 0}}
    return SimpleNamespace(**plain | fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": ["x", "y"]}, "several prompts"),
        ({"sampling_params": [{}, {}]}, "several prompts"),
        ({"sampling_params": {"n": 2}}, "several choices"),
        ({"sampling_params": {"beam_width": 4}}, "several choices"),
        ({"sampling_params": {"frequency_penalty": 0.5}}, "a frequency penalty"),
        ({"sampling_params": {"presence_penalty": 0.5}}, "a presence penalty"),
        ({"sampling_params": {"repetition_penalty": 1.1}}, "a repetition penalty"),
        ({"return_logprob": True}, "token probabilities"),
        ({"custom_logit_processor": "x"}, "a logit processor"),
        ({"image_data": ["x"]}, "images, audio or video"),
        ({"session_params": {"id": "s"}}, "a session with its own history"),
    ],
)
def test_what_cannot_go_on_exactly_is_not_told(fields: dict[str, Any], reason: str) -> None:
    obj = a_request(**fields)
    assert why_not_resumable(a_manager(), obj) == reason
    assert not is_to_be_told(a_manager(), obj, ASKS)


@pytest.mark.parametrize(
    "fields",
    [
        {"incremental_streaming_output": True},
        {"tokenizer": None},
        {"preferred_sampling_params": {"repetition_penalty": 1.05}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_server_may_be_why(fields: dict[str, Any]) -> None:
    assert why_not_resumable(a_manager(**fields), a_request()) is not None


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.7, "top_p": 0.9, "n": 1, "stop": ["x"], "json_schema": "{}"}, None],
)
def test_all_else_is_told_where_it_is_asked_for(params: dict[str, Any] | None) -> None:
    obj = a_request(sampling_params=params)
    assert is_to_be_told(a_manager(), obj, ASKS)
    assert not is_to_be_told(a_manager(), obj, ASKS_NOT)
    assert not is_to_be_told(a_manager(), obj, None)


def test_steps_without_an_event_are_told_with_the_next() -> None:
    told = Told()
    told.note({"output_ids": [5]})
    assert told.end("data: {}\n\n") == "data: {}\n:=5\n\n"
    told.note({"output_ids": [5, 6]})
    told.note({"output_ids": [5, 6, 7, 8]})
    told.note({"output_ids": [5, 6, 7, 8]})
    assert told.end("data: {}\n\n") == "data: {}\n:=6;7,8\n\n"
    assert told.end("data: {}\n\n") == "data: {}\n:=\n\n"


async def test_openai_stream_tells_the_ids_of_each_step_in_its_first_event() -> None:
    obj = a_request()
    manager = a_manager()
    serving = SimpleNamespace(tokenizer_manager=manager)

    async def contents(*args: Any) -> AsyncIterator[dict[str, Any]]:
        for count in (1, 2):
            yield {"output_ids": list(range(count)), "text": "x" * count, "meta_info": {}}

    async def events(serving: Any, obj: Any, request: Any, raw: Any) -> AsyncIterator[str]:
        async for _ in continuing.generate_request(inside()[0], contents, manager, obj):
            yield "data: {first}\n\n"
            yield "data: {second}\n\n"
        yield "data: [DONE]\n\n"

    stream = continuing.generate_events(inside()[0], events, serving, obj, None, ASKS)
    assert [event async for event in stream] == [
        "data: {first}\n:=0\n\n",
        "data: {second}\n:=\n\n",
        "data: {first}\n:=1\n\n",
        "data: {second}\n:=\n\n",
        "data: [DONE]\n\n",
    ]
