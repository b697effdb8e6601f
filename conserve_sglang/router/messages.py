"""Chat messages and answers in one canonical form, so that a history can be recognised.

Clients send an answer back in their own words: other spacing in tool arguments, null for an empty
text, parts for a string, extra fields. The canonical form keeps what identifies a message: role,
text, tool calls, and the call a tool's result answers.
"""

from dataclasses import dataclass, field

import msgspec

from conserve_sglang.workers.unreadable import UNREADABLE


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Delta | None = None
    text: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


class _Generated(msgspec.Struct):
    text: str = ""
    output_ids: list[int] = []
    index: int = 0


_messages = msgspec.json.Decoder(list[_Message])
_part = msgspec.json.Decoder(_Part)
_answer = msgspec.json.Decoder(_Answer)
_generated = msgspec.json.Decoder(_Generated)
_several_generated = msgspec.json.Decoder(list[_Generated])
_sorted = msgspec.json.Encoder(order="sorted")


def canonical_messages(raw: bytes | msgspec.Raw) -> list[bytes] | None:
    """Each message's canonical bytes; None if these are not chat messages."""
    try:
        return [_canonical(message) for message in _messages.decode(raw)]
    except UNREADABLE:
        return None


def _canonical(message: _Message) -> bytes:
    content = message.content
    if isinstance(content, list):
        content = "".join(_part_text(part) for part in content)
    # A developer message is a system message by its newer name.
    role = "system" if message.role == "developer" else message.role
    if role in _PLAIN and not message.tool_calls and not message.tool_call_id:
        rest = _PLAIN[role]
    else:
        rest = _without_text(role, message)
    return rest + (content or "").strip().encode("utf-8", "surrogatepass")


def _without_text(role: str, message: _Message) -> bytes:
    calls = [
        (call.id or "", call.function.name or "", _arguments(call.function.arguments))
        for call in message.tool_calls or ()
        if call.function is not None
    ]
    # JSON has no bare line break: the first one ends what is not text.
    return msgspec.json.encode((role, calls, message.tool_call_id or "")) + b"\n"


_PLAIN = {role: _without_text(role, _Message(role)) for role in ("system", "user", "assistant")}
"""What comes before the text of most messages."""


def _part_text(raw: msgspec.Raw) -> str:
    part = _part.decode(raw)
    if part.type == "text":
        return part.text or ""
    return _sorted.encode(msgspec.json.decode(raw)).decode()  # an image or the like, as it is


def _arguments(arguments: str | None) -> str:
    """Tool arguments are JSON in a string; spacing and order of keys say nothing."""
    try:
        return _sorted.encode(msgspec.json.decode(arguments or "{}")).decode()
    except UNREADABLE:
        return (arguments or "").strip()


@dataclass(slots=True)
class _Assembly:
    """A streamed message being put together."""

    text: list[str] = field(default_factory=list)
    calls: dict[int, _ToolCall] = field(default_factory=dict)

    def add(self, delta: _Delta) -> None:
        if delta.content:
            self.text.append(delta.content)
        for piece in delta.tool_calls or ():
            call = self.calls.setdefault(piece.index or 0, _ToolCall(function=_Function()))
            call.id = call.id or piece.id
            known = call.function
            if piece.function is not None and known is not None:
                known.name = known.name or piece.function.name
                known.arguments = (known.arguments or "") + (piece.function.arguments or "")

    def message(self) -> _Message:
        calls = [self.calls[index] for index in sorted(self.calls)]
        return _Message("assistant", "".join(self.text), calls)


def _events(body: bytes) -> list[bytes]:
    """The data of each event of a whole stream."""
    datas = [event[5:].strip() for event in body.split(b"\n\n") if event.startswith(b"data:")]
    return [data for data in datas if data != b"[DONE]"]


def chat_answer(body: bytes, is_stream: bool) -> bytes | None:
    """The canonical assistant message of an answer; None if it cannot be told."""
    try:
        if is_stream:
            assembly = _Assembly()
            for event in _events(body):
                for choice in _answer.decode(event).choices:
                    if choice.index == 0 and choice.delta is not None:
                        assembly.add(choice.delta)
            return _canonical(assembly.message())
        choices = _answer.decode(body).choices
        message = choices[0].message if choices else None
        return None if message is None else _canonical(message)
    except UNREADABLE:
        return None


def completion_answer(body: bytes, is_stream: bool) -> str | None:
    """The text of a `/v1/completions` answer."""
    try:
        answers = [_answer.decode(event) for event in (_events(body) if is_stream else [body])]
    except UNREADABLE:
        return None
    choices = [choice for answer in answers for choice in answer.choices]
    return "".join(choice.text or "" for choice in choices if choice.index == 0)


def generated_answer(body: bytes, is_stream: bool) -> tuple[str, list[int]] | None:
    """Text and token ids of a `/generate` answer's first choice; each event of a stream holds all
    so far."""
    try:
        if body.startswith(b"["):
            last = _several_generated.decode(body)[0]
        else:
            events = map(_generated.decode, reversed(_events(body)) if is_stream else [body])
            last = next(event for event in events if event.index == 0)
    except (*UNREADABLE, IndexError, StopIteration):
        return None
    return last.text, last.output_ids
