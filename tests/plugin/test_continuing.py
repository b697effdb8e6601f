"""An answer goes on: the prompt it is prefilled with, its steps made again, its events left out."""

from array import array
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from conserve_sglang.core.continuation import Handoff, continuation_rid
from conserve_sglang.plugin import continuing
from conserve_sglang.plugin.continuing import StepText
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.settings import read_settings
from tests.plugin.stub import inside
from tests.plugin.test_telling import a_manager

ANSWER = "go on!"
CHUNK = 'data: {{"id":"{id}","created":{created},"text":"{text}"}}\n\n'


class Tokenizer:
    """A byte a token."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Request(SimpleNamespace):
    """A request as SGLang has it."""

    def regenerate_rid(self) -> None:
        self.rid = "a new one"


def a_continued_request(sent: str = "go", num_events: int = 2, **fields: Any) -> Any:
    rid = continuation_rid(
        answer_id="first",
        created=17,
        num_events=num_events,
        steps=";".join(map(str, sent.encode())),
    )
    plain = {"rid": rid, "text": "prompt", "sampling_params": {}}
    return Request(**plain | fields)


def tokenized(*_: Any, **__: Any) -> Any:
    params = SimpleNamespace(
        max_new_tokens=50,
        min_new_tokens=5,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
    )
    ids = array("q", list(b"prompt"))
    return SimpleNamespace(input_ids=ids, sampling_params=params, routing_key=None)


def a_server() -> Any:
    return a_manager(tokenizer=Tokenizer())


def test_all_tokens_sent_but_the_last_are_prefilled() -> None:
    obj, manager = a_continued_request("go o"), a_server()
    made = continuing.create_tokenized_object(inside()[0], tokenized, manager, obj)
    assert bytes(list(made.input_ids)) == b"promptgo "
    handoff = Handoff.from_routing_key(made.routing_key)
    assert handoff == Handoff(num_sent=4, last_id=ord("o"), max_new_tokens=50)
    assert made.sampling_params.min_new_tokens == 1
    assert obj.rid == "a new one"


def test_other_requests_are_left_alone() -> None:
    obj = Request(rid=None, text="prompt", sampling_params={})
    made = continuing.create_tokenized_object(inside()[0], tokenized, a_server(), obj)
    assert bytes(list(made.input_ids)) == b"prompt"
    assert made.routing_key is None


def test_what_cannot_go_on_exactly_is_refused() -> None:
    obj = a_continued_request(return_logprob=True)
    with pytest.raises(ValueError, match="cannot be continued: token probabilities"):
        continuing.create_tokenized_object(inside()[0], tokenized, a_server(), obj)


async def scheduler(sent: int, finish: Any = None) -> AsyncIterator[dict[str, Any]]:
    """What the scheduler's answer is from the tokens sent on."""
    async for content in scheduler_at(range(sent, len(ANSWER) + 1), finish):
        yield content


async def scheduler_at(ends: Iterable[int], finish: Any = None) -> AsyncIterator[dict[str, Any]]:
    for end in ends:
        reason = {"type": "stop"} if end == len(ANSWER) else None
        yield {
            "text": ANSWER[:end],
            "output_ids": list(ANSWER[:end].encode()),
            "meta_info": {
                "id": "own",
                "finish_reason": finish or reason,
                "completion_tokens": end,
            },
        }


def serve(obj: Any, settings: Inside, sent: int, finish: Any = None) -> AsyncIterator[str]:
    """An endpoint with an event for each character, and one more at each beginning."""
    manager = a_server()

    async def contents(manager: Any, obj: Any) -> AsyncIterator[dict[str, Any]]:
        continuing.create_tokenized_object(settings, tokenized, manager, obj)
        async for content in scheduler(sent, finish):
            yield content

    async def events(serving: Any, obj: Any, request: Any, raw: Any) -> AsyncIterator[str]:
        shown = ""
        async for content in continuing.generate_request(settings, contents, manager, obj):
            name = content["meta_info"]["id"]
            if not shown:
                yield CHUNK.format(id=name, created=99, text="role")
            for char in content["text"][len(shown) :]:
                yield CHUNK.format(id=name, created=99, text=char)
            shown = content["text"]
        yield "data: [DONE]\n\n"

    serving = SimpleNamespace(tokenizer_manager=manager)
    return continuing.generate_events(settings, events, serving, obj, None, None)


@pytest.mark.parametrize("num_events", range(1, 4))
async def test_events_the_client_has_are_left_out(num_events: int) -> None:
    obj = a_continued_request("go", num_events)
    got = [event async for event in serve(obj, inside()[0], 2)]
    texts = ["role", *ANSWER]
    expected = [CHUNK.format(id="first", created=17, text=text) for text in texts[num_events:]]
    assert got == [*expected, "data: [DONE]\n\n"]


@pytest.mark.parametrize("ends", [(2, 4, 6), (3, 4, 6), (4, 6), (6,)])
async def test_steps_a_busy_server_puts_into_one_are_not_lost(ends: tuple[int, ...]) -> None:
    settings, obj, manager = inside()[0], a_continued_request("go", 2), a_server()

    async def contents(manager: Any, obj: Any) -> AsyncIterator[dict[str, Any]]:
        continuing.create_tokenized_object(settings, tokenized, manager, obj)
        async for content in scheduler_at(ends):
            yield content

    async def events(serving: Any, obj: Any, request: Any, raw: Any) -> AsyncIterator[str]:
        shown = ""
        async for content in continuing.generate_request(settings, contents, manager, obj):
            yield content["text"][len(shown) :]
            shown = content["text"]

    serving = SimpleNamespace(tokenizer_manager=manager)
    stream = continuing.generate_events(settings, events, serving, obj, None, None)
    assert "".join([event async for event in stream]) == ANSWER[2:]


async def test_error_is_no_event_the_client_has() -> None:
    obj = a_continued_request("go", 3)

    async def events(*_: Any) -> AsyncIterator[str]:
        yield 'data: {"error": 1}\n\n'
        yield "data: [DONE]\n\n"

    serving = SimpleNamespace(tokenizer_manager=a_server())
    stream = continuing.generate_events(inside()[0], events, serving, obj, None, None)
    assert [event async for event in stream] == ['data: {"error": 1}\n\n', "data: [DONE]\n\n"]


async def contents_of(obj: Any, sent: int, finish: Any = None) -> list[dict[str, Any]]:
    async def contents(manager: Any, obj: Any) -> AsyncIterator[dict[str, Any]]:
        continuing.create_tokenized_object(inside()[0], tokenized, manager, obj)
        async for content in scheduler(sent, finish):
            yield content

    stream = continuing.generate_request(inside()[0], contents, a_server(), obj)
    return [content async for content in stream]


async def test_native_stream_begins_behind_what_was_sent() -> None:
    got = await contents_of(a_continued_request("go", 0), 2)
    assert [len(content["output_ids"]) for content in got] == [3, 4, 5, 6]
    assert {content["meta_info"]["id"] for content in got} == {"first"}


async def test_abort_is_passed_on_as_it_is() -> None:
    got = await contents_of(a_continued_request("go", 0), 6, {"type": "abort"})
    assert [content["meta_info"]["finish_reason"]["type"] for content in got] == ["abort"]


async def test_text_that_comes_out_differently_is_an_error() -> None:
    with pytest.raises(ValueError, match="its text came out differently"):
        await contents_of(a_continued_request("gx", 0), 2)


async def test_prefiller_answers_as_to_any_request() -> None:
    settings = read_settings({"CONSERVE_CONTINUE": "1"})
    at_prefiller = Inside(sglang_version="0", adapter=inside()[1], settings=settings)
    got = [event async for event in serve(a_continued_request("go", 2), at_prefiller, 5)]
    assert got[0] == CHUNK.format(id="own", created=99, text="role")


def printable(text: str) -> str:
    return text[: text.rfind(" ") + 1]


def test_text_waits_for_the_rest_of_a_character() -> None:
    text = StepText(list(b"pt: "), Tokenizer().decode, printable)
    euro = "€".encode()
    assert text.after((ord("a"),)) == "a"
    assert text.after((euro[0],)) == "a"
    assert text.after((euro[1],)) == "a"
    assert text.after((euro[2],)) == "a€"
    assert text.after((ord("b"), ord(" "), euro[0])) == "a€b "
    assert text.after((euro[1], euro[2])) == "a€b €"
