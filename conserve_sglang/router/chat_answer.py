"""Chat answers as those read them who tell them in another API's words.

A stream is read no more than needed: the text of a piece stays the JSON it is, to be copied from
one event to the other without being decoded.
"""

from collections.abc import Iterator

import msgspec

from conserve_sglang.router.problem import Problem, from_worker
from conserve_sglang.workers.unreadable import UNREADABLE

NOTHING = (b"", b"null", b'""')
UNREADABLE_ANSWER = Problem(
    status=502, code="answer_unreadable", message="The worker's answer cannot be read. Try again."
)


class Function(msgspec.Struct):
    """A called function, or a piece of one."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    """A call of a tool, or a piece of one."""

    index: int = 0
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Said(msgspec.Struct):
    """A whole message."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class Delta(msgspec.Struct):
    """A piece of a message."""

    content: msgspec.Raw = msgspec.Raw()
    reasoning_content: msgspec.Raw = msgspec.Raw()
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    """An answer, or a piece of it."""

    message: Said | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    matched_stop: str | int | None = None


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class Counts(msgspec.Struct):
    """Token counts; the cached part of the prompt is part of the prompt."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    reasoning_tokens: int | None = None

    @property
    def cached_tokens(self) -> int:
        """How much of the prompt was cached."""
        details = self.prompt_tokens_details
        return min(details.cached_tokens, self.prompt_tokens) if details is not None else 0


class Chat(msgspec.Struct):
    """A whole answer, or one event of it."""

    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_QUOTE = ord('"')
_chat = msgspec.json.Decoder(Chat)
_counts = msgspec.json.Decoder(Counts | None)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def counts_in(usage: msgspec.Raw) -> Counts:
    """The token counts of a piece or an answer; zeros if it has none that make sense."""
    try:
        counts: Counts | None = _counts.decode(usage)
    except UNREADABLE:
        counts = None
    return counts or Counts()


def whole_answer(body: bytes) -> tuple[Choice, Said, Counts] | None:
    """The first choice of a whole answer; None if it makes no sense."""
    try:
        chat = _chat.decode(body)
    except UNREADABLE:
        return None
    choice = chat.choices[0] if chat.choices else None
    if choice is None or choice.message is None or choice.finish_reason == "abort":
        return None
    return choice, choice.message, counts_in(chat.usage)


class ChatEvents:
    """Cuts the bytes of a stream into its events, wherever they are parted."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes, is_last: bool) -> Iterator[Chat | Problem | None]:
        """The next events: a piece, an error, or None for the mark at the end of the stream."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(b"\n\n") and not is_last:
            end = data.rfind(b"\n\n") + 2
            if end < 2:
                self._held = data
                return
            self._held = data[end:]
            data = data[:end]
        for event in data.split(b"\n\n"):
            if event.startswith(b"data:"):
                yield _read(event[5:])


def _read(data: bytes) -> Chat | Problem | None:
    if data.strip() == b"[DONE]":
        return None
    try:
        if not data.isascii():
            data.decode()  # what is copied unread would keep bytes that are not UTF-8
        chat = _chat.decode(data)
    except UNREADABLE:
        return UNREADABLE_ANSWER
    if any(not _is_text(choice.delta) for choice in chat.choices):
        return UNREADABLE_ANSWER
    if not chat.choices and bytes(chat.error) not in NOTHING:
        return from_worker(_status_in(chat.error), data)
    return chat


def _is_text(delta: Delta | None) -> bool:
    """Whether what is copied unread is the text it has to be."""
    if delta is None:
        return True
    said, thought = bytes(delta.content), bytes(delta.reasoning_content)
    return (said in NOTHING or said[0] == _QUOTE) and (thought in NOTHING or thought[0] == _QUOTE)


def _status_in(error: msgspec.Raw) -> int:
    try:
        status = int(bytes(_object.decode(error).get("code", b"500")))
    except (*UNREADABLE, ValueError):
        return 500
    return status if 400 <= status < 600 else 500
