"""OpenAI Responses: a request opened as the chat it becomes, and an answer told as a response."""

import json

from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.history import HistoryHash
from conserve_sglang.router.identity import History
from conserve_sglang.router.payload import Endpoint, Payload, read_payload
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses import ResponsesCall
from conserve_sglang.router.responses_items import Page, listed
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.router.salt import Salts
from conserve_sglang.router.translation import UnreadableAnswer

SALT = Salts(b"secret").of(DEFAULT_TENANT.tenant_id)
_HASH = HistoryHash(b"secret")
_WHOLE = b'{"model":"tiny","input":"q"}'
_STREAMED = b'{"stream":true,' + _WHOLE[1:]
_HISTORY = b'{"role":"user","content":"before"},{"role":"assistant","content":"it"}'
_ENDS = ("response.completed", "response.incomplete", "error")


def opened(data: bytes) -> Payload:
    """The chat that asks the same, its history hashed; raises `BadBody`."""
    call = ResponsesCall(None)
    call.read(data)
    history = b"" if call.previous is None else _HISTORY
    chat = read_payload(Endpoint.CHAT, call.chat(history), SALT)
    History(chat, DEFAULT_TENANT.tenant_id, _HASH)
    return chat


def check_refusal(problem: Problem) -> None:
    """A refusal must be complete: a status, and a message in JSON."""
    assert 400 <= problem.status < 600
    assert json.loads(ResponsesCall(None).problem(problem))["error"]["message"]


def tell_response(data: bytes) -> str:
    """A worker's answer, told as a response: event by event, and as a whole.

    What is kept of it for the next request can be gone on from.
    """
    step = 1 + (data[-1] if data else 0)
    kept: list[Stored] = []
    stream = _call(_STREAMED, kept)
    told = b"".join(
        [*(stream.feed(data[at : at + step], False) for at in range(0, len(data), step)),
         stream.feed(b"", True)]
    )  # fmt: skip
    ended = _check_events(told)
    assert len(kept) == (ended != "error")
    whole = _call(_WHOLE, kept)
    assert whole.feed(data, False) == b""
    try:
        response = json.loads(whole.feed(b"", True))
    except UnreadableAnswer as unreadable:
        check_refusal(unreadable.problem)
        return ended
    finally:
        _check_kept(kept)
    assert response["output"]
    assert response["status"] in ("completed", "incomplete")
    return "whole"


def _call(body: bytes, kept: list[Stored]) -> ResponsesCall:
    call = ResponsesCall(lambda response_id, stored: kept.append(stored))
    call.read(body)
    call.chat()
    return call


def _check_kept(kept: list[Stored]) -> None:
    for stored in kept:
        messages = json.loads(b"[" + stored.messages + b"]")
        given = json.loads(listed(b'[["resp_1",[%b]]]' % stored.messages, Page()))["data"]
        assert [item["role"] for item in given] == ["user"]
        assert json.loads(stored.response)["status"] in ("completed", "incomplete")
        history = json.loads(listed(b'[["resp_1",[%b]],["resp_2",[]]]' % stored.messages, Page()))
        assert len(history["data"]) > len(given)
        assert [message["role"] for message in messages] == ["user", "assistant"]
        call = ResponsesCall(None)
        call.read(_WHOLE)
        chat = read_payload(Endpoint.CHAT, call.chat(stored.messages))
        History(chat, DEFAULT_TENANT.tenant_id, _HASH)


def _check_events(told: bytes) -> str:
    """A stream is one response, its events numbered and its items closed, or ends in an error."""
    assert told.endswith(b"\n\n")
    events = told[:-2].split(b"\n\n")
    open_items: set[str] = set()
    num_items = 0
    for number, event in enumerate(events):
        name, _, data = event.partition(b"\ndata: ")
        fields = json.loads(data)
        kind = fields["type"]
        assert name == b"event: " + kind.encode()
        assert fields["sequence_number"] == number
        assert (kind in _ENDS) == (number == len(events) - 1)
        if kind == "response.output_item.added":
            assert fields["output_index"] == num_items
            num_items += 1
            open_items.add(fields["item"]["id"])
        elif kind == "response.output_item.done":
            open_items.remove(fields["item"]["id"])
        elif "item_id" in fields:
            assert fields["item_id"] in open_items
    if kind != "error":
        assert not open_items
        assert len(fields["response"]["output"]) == num_items
    ended: str = kind
    return ended
