"""Chat answers told as OpenAI responses: a whole one, or event by event as it streams."""

from typing import Any

import msgspec

from conserve_sglang.router.chat_answer import (
    NOTHING,
    Call,
    ChatEvents,
    Choice,
    Counts,
    Said,
    counts_in,
)
from conserve_sglang.router.problem import BROKEN_OFF, Problem

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call_output": "fco"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_encode = msgspec.json.encode
_text = msgspec.json.Decoder(str)

Fields = dict[str, Any]


def item_id(kind: str, of: str, index: int, *, is_input: bool = False) -> str:
    """The id of one item of the response `of`: of its output, or of what it was given.

    It follows from where the item stands, so an item of a history has it too.
    """
    prefix = _PREFIXES.get(kind, "fc")
    return f"{prefix}_{of.removeprefix('resp_')}{1 - is_input}{index:05x}"


def usage_of(counts: Counts) -> Fields:
    """Token counts in this API's names."""
    output = counts.completion_tokens or 0
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens or 0},
        "total_tokens": counts.prompt_tokens + output,
    }


def ended(choice: Choice) -> Fields:
    """Whether the answer is complete."""
    why = _INCOMPLETE.get(choice.finish_reason or "")
    details = None if why is None else {"reason": why}
    status = "completed" if why is None else "incomplete"
    return {"status": status, "incomplete_details": details}


class Item:
    """One item of the output, as it grows."""

    __slots__ = ("call_id", "id", "index", "kind", "name", "pieces")

    def __init__(self, kind: str, of: str, index: int, call: Call | None = None) -> None:
        self.kind = kind
        self.index = index
        self.id = item_id(kind, of, index)
        self.call_id = (call.id or "") if call is not None else ""
        self.name = (call.function.name or "") if call is not None else ""
        self.pieces: list[str] = []

    @property
    def said(self) -> str:
        """Its text or its arguments."""
        return "".join(self.pieces)

    def fields(self, status: str) -> Fields:
        """The item as it is told."""
        fields: Fields = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "message":
            content = [_text_part(self.said)] if status != "in_progress" else []
            return {**fields, "role": "assistant", "content": content}
        if self.kind == "reasoning":
            thought = [{"type": "reasoning_text", "text": self.said}]
            content = thought if status != "in_progress" else []
            return {**fields, "summary": [], "content": content}
        return {**fields, "call_id": self.call_id, "name": self.name, "arguments": self.said}


def _text_part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def items_of(said: Said, of: str) -> list[Item]:
    """The items of a whole answer, which is that of the response `of`."""
    items: list[Item] = []

    def add(kind: str, text: str, call: Call | None = None) -> None:
        item = Item(kind, of, len(items), call)
        item.pieces.append(text)
        items.append(item)

    if said.reasoning_content:
        add("reasoning", said.reasoning_content)
    if said.content or not said.tool_calls:
        add("message", said.content or "")
    for call in said.tool_calls or ():
        add("function_call", call.function.arguments or "", call)
    return items


def chat_message(items: list[Item]) -> bytes:
    """The assistant message these items are, for the history of the next turn."""
    message: Fields = {"role": "assistant", "content": ""}
    for item in items:
        if item.kind == "message":
            message["content"] += item.said
        elif item.kind == "reasoning":
            message["reasoning_content"] = item.said
        else:
            function = {"name": item.name, "arguments": item.said or "{}"}
            call = {"id": item.call_id, "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
    return _encode(message)


_DELTAS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseStream:
    """Turns the events of a streamed chat answer into those of a response."""

    __slots__ = (
        "_base",
        "_calls",
        "_choice",
        "_events",
        "_num_events",
        "_open",
        "_usage",
        "has_ended",
        "items",
        "response",
    )  # fmt: skip

    def __init__(self, base: Fields) -> None:
        self._base = base
        self._events = ChatEvents()
        self._num_events = 0
        self._open: Item | None = None
        self._calls: dict[int, Item] = {}
        self._choice: Choice | None = None
        self._usage = msgspec.Raw()  # the last that was told, read when it is needed
        self.items: list[Item] = []
        self.has_ended = False
        self.response = b""  # the whole object, at the end

    @property
    def is_complete(self) -> bool:
        """Whether it came to an end of its own, so that it can be continued."""
        return self.has_ended and self._choice is not None

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """The events for the next bytes of the chat stream."""
        out: list[bytes] = []
        if not self._num_events:
            response = {**self._base, "status": "in_progress"}
            self._tell(out, "response.created", response=response)
            self._tell(out, "response.in_progress", response=response)
        for event in self._events.feed(data, is_last):
            if self.has_ended:
                break
            if event is None:
                self._end(out)
            elif isinstance(event, Problem):
                out.append(self.problem_event(event))
            else:
                if bytes(event.usage) not in NOTHING:
                    self._usage = event.usage
                if event.choices:
                    self._take(event.choices[0], out)
        if is_last and not self.has_ended:
            self._end(out)
        return b"".join(out)

    def problem_event(self, problem: Problem) -> bytes:
        """An error that ends the stream, in the shape of the event and as the client raises it."""
        self.has_ended = True
        self._choice = None
        error = {"type": "server_error", "code": problem.code, "message": problem.message}
        out: list[bytes] = []
        told = {"code": problem.code, "message": problem.message, "param": None}
        self._tell(out, "error", **told, error=error)
        return out[0]

    def _tell(self, out: list[bytes], name: str, /, **fields: Any) -> None:
        event = {"type": name, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(event)))

    def _take(self, choice: Choice, out: list[bytes]) -> None:
        if choice.finish_reason is not None:
            self._choice = choice
        delta = choice.delta
        if delta is None:
            return
        for kind, raw in (("reasoning", delta.reasoning_content), ("message", delta.content)):
            if bytes(raw) not in NOTHING:
                self._say(kind, _text.decode(raw), out)
        for call in delta.tool_calls or ():
            self._call(call, out)

    def _say(self, kind: str, text: str, out: list[bytes]) -> None:
        item = self._open
        if item is None or item.kind != kind:
            if item is not None and item.kind == "function_call" and not text.strip():
                return  # how a model parts its calls
            item = self._start(Item(kind, self._base["id"], len(self.items)), out)
        item.pieces.append(text)
        name = f"response.{_DELTAS[kind]}.delta"
        extra: Fields = {"logprobs": []} if kind == "message" else {}
        self._tell(out, name, **_at(item), content_index=0, delta=text, **extra)

    def _call(self, call: Call, out: list[bytes]) -> None:
        item = self._calls.get(call.index)
        if item is None:
            new = Item("function_call", self._base["id"], len(self.items), call)
            item = self._start(new, out)
            self._calls[call.index] = item
        piece = call.function.arguments
        if piece:
            item.pieces.append(piece)
            self._tell(out, "response.function_call_arguments.delta", **_at(item), delta=piece)

    def _start(self, item: Item, out: list[bytes]) -> Item:
        # A call stays open to the end: pieces of several may come mixed.
        if self._open is not None and self._open.kind != "function_call":
            self._finish(self._open, out)
        self.items.append(item)
        self._open = item
        added = {"output_index": item.index, "item": item.fields("in_progress")}
        self._tell(out, "response.output_item.added", **added)
        if item.kind != "function_call":
            part = _text_part("") if item.kind == "message" else _thought("")
            name = "response.content_part.added"
            self._tell(out, name, **_at(item), content_index=0, part=part)
        return item

    def _finish(self, item: Item, out: list[bytes]) -> None:
        said = item.said
        if item.kind == "function_call":
            done = {"name": item.name, "arguments": said}
            self._tell(out, "response.function_call_arguments.done", **_at(item), **done)
        else:
            at = {**_at(item), "content_index": 0}
            extra: Fields = {"logprobs": []} if item.kind == "message" else {}
            self._tell(out, f"response.{_DELTAS[item.kind]}.done", **at, text=said, **extra)
            part = _text_part(said) if item.kind == "message" else _thought(said)
            self._tell(out, "response.content_part.done", **at, part=part)
        done_item = item.fields("completed")
        self._tell(out, "response.output_item.done", output_index=item.index, item=done_item)

    def _end(self, out: list[bytes]) -> None:
        choice = self._choice
        if choice is None or choice.finish_reason == "abort":
            out.append(self.problem_event(BROKEN_OFF))
            return
        for item in self.items:
            if item is self._open or item.kind == "function_call":
                self._finish(item, out)
        end = ended(choice)
        output = [item.fields(end["status"]) for item in self.items]
        usage = usage_of(counts_in(self._usage))
        self.response = _encode({**self._base, **end, "output": output, "usage": usage})
        self._tell(out, f"response.{end['status']}", response=msgspec.Raw(self.response))
        self.has_ended = True


def _at(item: Item) -> Fields:
    return {"item_id": item.id, "output_index": item.index}


def _thought(text: str) -> Fields:
    return {"type": "reasoning_text", "text": text}
