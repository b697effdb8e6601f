"""Chat answers told as Anthropic messages: a whole one, or event by event as it streams."""

import os
from collections.abc import Callable, Mapping

import msgspec

from conserve_sglang.router.chat_answer import (
    NOTHING,
    Call,
    ChatEvents,
    Choice,
    Counts,
    counts_in,
    whole_answer,
)
from conserve_sglang.router.problem import BROKEN_OFF, Problem
from conserve_sglang.workers.unreadable import UNREADABLE

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_encode = msgspec.json.encode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def message_id() -> str:
    """A new message's name."""
    return "msg_" + os.urandom(12).hex()


def _usage(counts: Counts) -> dict[str, int]:
    """Anthropic counts the cached part of the prompt apart from the rest."""
    return {
        "input_tokens": counts.prompt_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens or 0,
    }


def _stopped(choice: Choice, has_calls: bool) -> dict[str, str | None]:
    """Why the answer ended: `stop_reason` and `stop_sequence`."""
    finish = choice.finish_reason or "stop"
    if finish == "stop":
        if isinstance(choice.matched_stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.matched_stop}
        if has_calls:
            finish = "tool_calls"
    return {"stop_reason": _STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}


def whole_message(body: bytes, model: str) -> bytes | None:
    """The message of a whole chat answer; None if it cannot be read."""
    read = whole_answer(body)
    if read is None:
        return None
    choice, said, counts = read
    content: list[dict[str, object]] = []
    if said.reasoning_content:
        thought = {"type": "thinking", "thinking": said.reasoning_content, "signature": ""}
        content.append({**thought})
    calls = said.tool_calls or []
    if said.content or not (calls or content):
        content.append({"type": "text", "text": said.content or ""})
    for call in calls:
        named = {"type": "tool_use", "id": call.id or "", "name": call.function.name or ""}
        content.append({**named, "input": _input(call.function.arguments)})
    message = {
        "id": message_id(), "type": "message", "role": "assistant", "model": model,
        "content": content, **_stopped(choice, bool(calls)), "usage": _usage(counts),
    }  # fmt: skip
    return _encode(message)


def _input(arguments: str | None) -> msgspec.Raw:
    """A call's arguments as an object; none that an answer's limit cut off can be one."""
    try:
        _object.decode(arguments or "{}")
    except UNREADABLE:
        return msgspec.Raw(b"{}")
    return msgspec.Raw((arguments or "{}").encode())


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


def _delta_event(kind: bytes, field: bytes) -> bytes:
    data = b'{"type":"content_block_delta","index":%%d,"delta":{"type":"%b","%b":%%b}}'
    return _event(b"content_block_delta", data % (kind, field))


_STOP_BLOCK = _event(b"content_block_stop", b'{"type":"content_block_stop","index":%d}')
_TEXT = _delta_event(b"text_delta", b"text")
_THINKING = _delta_event(b"thinking_delta", b"thinking")
_INPUT = _delta_event(b"input_json_delta", b"partial_json")
_PING = _event(b"ping", b'{"type":"ping"}')
_END = _event(b"message_stop", b'{"type":"message_stop"}')
_EMPTY_TEXT = {"type": "text", "text": ""}
_EMPTY_THINKING = {"type": "thinking", "thinking": "", "signature": ""}


class MessageStream:
    """Turns the events of a streamed chat answer into those of a message."""

    __slots__ = (
        "_calls",
        "_choice",
        "_events",
        "_index",
        "_is_over",
        "_kind",
        "_model",
        "_tell_problem",
        "_usage",
    )  # fmt: skip

    def __init__(self, model: str, tell_problem: Callable[[Problem], bytes]) -> None:
        self._model = model
        self._tell_problem = tell_problem
        self._events = ChatEvents()
        self._index = -1  # of the block that is or was open last
        self._kind = b""  # of the block that is open
        self._calls: dict[int, int] = {}  # the block of each tool call
        self._choice: Choice | None = None  # the one that said why it ended
        self._usage = msgspec.Raw()  # the last that was told, read when it is needed
        self._is_over: bool | None = None  # None until the message has started

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """The events for the next bytes of the chat stream."""
        out: list[bytes] = []
        for event in self._events.feed(data, is_last):
            if self._is_over is True:
                break
            if event is None:
                self._end(out)
            elif isinstance(event, Problem):
                self._fail(event, out)
            else:
                if bytes(event.usage) not in NOTHING:
                    self._usage = event.usage
                if event.choices:
                    self._take(event.choices[0], out)
        if is_last and self._is_over is not True:
            self._end(out)
        return b"".join(out)

    def _take(self, choice: Choice, out: list[bytes]) -> None:
        if choice.finish_reason is not None:
            self._choice = choice
        delta = choice.delta
        if delta is None:
            return
        thought = bytes(delta.reasoning_content)
        if thought not in NOTHING:
            if self._kind != b"thinking":
                self._open(b"thinking", _EMPTY_THINKING, out)
            out.append(_THINKING % (self._index, thought))
        text = bytes(delta.content)
        if text not in NOTHING and not self._is_seam(text):
            if self._kind != b"text":
                self._open(b"text", _EMPTY_TEXT, out)
            out.append(_TEXT % (self._index, text))
        for call in delta.tool_calls or ():
            self._call(call, out)

    def _is_seam(self, text: bytes) -> bool:
        """White space between two calls is how a model writes them, and says nothing."""
        return self._kind == b"tool_use" and not msgspec.json.decode(text, type=str).strip()

    def _call(self, call: Call, out: list[bytes]) -> None:
        index = self._calls.get(call.index)
        if index is None:
            name = {"type": "tool_use", "id": call.id or "", "name": call.function.name or ""}
            self._open(b"tool_use", {**name, "input": {}}, out)
            index = self._calls[call.index] = self._index
        if call.function.arguments:
            out.append(_INPUT % (index, _encode(call.function.arguments)))

    def _open(self, kind: bytes, block: Mapping[str, object], out: list[bytes]) -> None:
        self._start(out)
        self._close(out)
        self._index += 1
        self._kind = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        out.append(_event(b"content_block_start", _encode(start)))

    def _close(self, out: list[bytes]) -> None:
        if self._kind:
            out.append(_STOP_BLOCK % self._index)
            self._kind = b""

    def _start(self, out: list[bytes]) -> None:
        if self._is_over is not None:
            return
        self._is_over = False
        message: dict[str, object] = {
            "id": message_id(), "type": "message", "role": "assistant", "model": self._model,
            "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {**_usage(counts_in(self._usage)), "output_tokens": 0},
        }  # fmt: skip
        start = {"type": "message_start", "message": message}
        out += (_event(b"message_start", _encode(start)), _PING)

    def _end(self, out: list[bytes]) -> None:
        choice = self._choice
        if choice is None or choice.finish_reason == "abort":
            self._fail(BROKEN_OFF, out)
            return
        self._start(out)
        self._close(out)
        self._is_over = True
        delta = _stopped(choice, bool(self._calls))
        end = {"type": "message_delta", "delta": delta, "usage": _usage(counts_in(self._usage))}
        out += (_event(b"message_delta", _encode(end)), _END)

    def _fail(self, problem: Problem, out: list[bytes]) -> None:
        self._is_over = True
        out.append(self._tell_problem(problem))
