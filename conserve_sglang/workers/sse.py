"""Server-sent events, read no more than needed: token counts at the tail, a usage event held back.

Body bytes pass through as they are. Only an event that might be the extra usage event is looked
into, and only when the router itself asked for it; the lines that tell token ids are cut out.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from conserve_sglang.core.continuation import MARK
from conserve_sglang.workers.unreadable import UNREADABLE

TAIL_BYTES = 4096
_MAX_HELD_BYTES = 16 * 1024
_MAX_HELD_TOLD_BYTES = 1024 * 1024
_SHORT_BYTES = 4096  # of one event, at most
_TOLD = MARK[1:]
_WITHOUT_USAGE = b'"usage":null}'  # how an event as SGLang writes it ends, which so has no counts
_NUMBER = re.compile(rb"\s*(\d+)")
_CALLS = b'"finish_reason":"tool_calls"'
_CALLS_SPACED = b'"finish_reason": "tool_calls"'
_USUAL = re.compile(
    rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+),'
    rb'"prompt_tokens_details":(?:null|\{(?:"\w+":\d+,)*"cached_tokens":(\d+))'
)


@dataclass(slots=True)
class Usage:
    """Token counts of one answer, as its worker reported them. Frozen by agreement only."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Details(msgspec.Struct):
    cached_tokens: _Count = 0


class _Counts(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count = 0
    prompt_tokens_details: _Details | None = None


class _Whole(msgspec.Struct):
    usage: _Counts


_whole = msgspec.json.Decoder(_Whole)


def usage_of(body: bytes) -> Usage | None:
    """The token counts of a whole answer as SGLang's OpenAI endpoints write it, else `usage_in`.

    Of a short body this is the quicker way.
    """
    try:
        counts = _whole.decode(body).usage
    except (msgspec.DecodeError, RecursionError):
        return usage_in(body[-TAIL_BYTES:])
    details = counts.prompt_tokens_details
    cached_tokens = 0 if details is None else details.cached_tokens
    return Usage(counts.prompt_tokens, counts.completion_tokens, cached_tokens)


def usage_in(tail: bytes) -> Usage | None:
    """The last token counts in the tail of an answer; None if it holds none.

    Inside JSON text a quote is escaped, so a key can only match where it is a key.
    """
    at = tail.rfind(b'"prompt_tokens":')
    if at < 0:
        return None
    usual = _USUAL.match(tail, at)
    if usual is not None:  # as SGLang's OpenAI endpoints write it
        prompt_tokens, output_tokens, cached_tokens = usual.groups(b"0")
        return Usage(int(prompt_tokens), int(output_tokens), int(cached_tokens))
    prompt = _last_number(tail, b'"prompt_tokens":')
    if prompt is None:
        return None
    return Usage(
        prompt_tokens=prompt,
        output_tokens=_last_number(tail, b'"completion_tokens":') or 0,
        cached_tokens=_last_number(tail, b'"cached_tokens":') or 0,
    )


def calls_tools(tail: bytes) -> bool:
    """Whether the end of an answer says that it calls tools. Inside text a quote is escaped."""
    return tail.rfind(_CALLS) >= 0 or tail.rfind(_CALLS_SPACED) >= 0  # as below: rfind is quicker


def _last_number(tail: bytes, key: bytes) -> int | None:
    at = tail.rfind(key)
    if at < 0:
        return None
    match = _NUMBER.match(tail, at + len(key))
    return int(match[1]) if match else None


class _UsageEvent(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: dict[str, msgspec.Raw]
    sglext: msgspec.Raw = msgspec.Raw()


_usage_event = msgspec.json.Decoder(_UsageEvent)


def _may_hold_usage(data: bytes) -> bool:
    # rfind, since CPython's forward search takes longer over such an event.
    return data.rfind(b'"choices":[]') >= 0 or data.rfind(b'"choices": []') >= 0


class UsageFilter:
    """Takes the usage event out of a stream whose client did not ask for one, and the lines that
    tell token ids out of any stream; those go to `told`, one for each event.

    Events may be split anywhere over the pieces fed; an unfinished event is held until it is
    whole, which costs its reader nothing, unless it is too long to be looked at.
    """

    __slots__ = (
        "_held",
        "_hides_usage",
        "_max_held_bytes",
        "_told",
        "before_usage",
        "is_passing",
        "usage",
    )

    def __init__(self, told: list[bytes] | None = None, *, hides_usage: bool = True) -> None:
        self._told = told
        self._hides_usage = hides_usage
        self._max_held_bytes = _MAX_HELD_BYTES if told is None else _MAX_HELD_TOLD_BYTES
        self._held = b""
        self.is_passing = False  # inside an event too long to hold
        self.usage: Usage | None = None
        self.before_usage = b""  # the piece that the usage event came in, or came after

    def feed(self, data: bytes) -> bytes:
        """The part of `data` (and of what was held) that goes on to the client."""
        told = self._told
        if told is not None and len(data) <= _SHORT_BYTES and not (self._held or self.is_passing):
            lines = data.split(b"\n", 4)
            if len(lines) == 4 and lines[1].startswith(_TOLD) and not (lines[2] or lines[3]):
                event = lines[0]  # one event and what it tells, as nearly always
                told.append(lines[1][2:])
                data = event + b"\n\n"
                if not self._hides_usage:
                    return data
                if event.endswith(_WITHOUT_USAGE) and self.usage is None:
                    self.before_usage = data
                    return data
                return self._showing(data)
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        if self.is_passing:
            end = data.find(b"\n\n")
            if end < 0:
                return data
            self.is_passing = False
            return data[: end + 2] + self._feed(data[end + 2 :])
        if self._held or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
        if self._told is not None and data.rfind(MARK) >= 0:
            data = _without_marks(data, self._told)
        return self._showing(data) if self._hides_usage else data

    def _showing(self, data: bytes) -> bytes:
        """What the client is to see of whole events, without the usage it did not ask for."""
        if _may_hold_usage(data):
            self.before_usage += data
            return self._without_usage(data)
        if data and self.usage is None:
            self.before_usage = data
        return data

    def flush(self) -> bytes:
        """What is still held when the stream ends."""
        held = self._held
        self._held = b""
        return held

    def _whole_events(self, data: bytes) -> bytes:
        """What is whole of what was held and came; the rest is held, unless it is too long."""
        data = self._held + data
        self._held = b""
        if data.endswith(b"\n\n"):
            return data
        end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        if len(data) - end <= self._max_held_bytes:
            self._held = data[end:]
            return data[:end]
        self.is_passing = True
        self._stop_taking()
        return data

    def _stop_taking(self) -> None:
        """An event too long to hold goes by with what it tells: what was told is of no use now."""
        if self._told is not None:
            self._told.clear()
            self._told = None

    def _without_usage(self, data: bytes) -> bytes:
        events = data.split(b"\n\n")
        return b"\n\n".join(event for event in events if not self._is_usage(event))

    def _is_usage(self, event: bytes) -> bool:
        if not event.startswith(b"data:") or not _may_hold_usage(event):
            return False
        try:
            parsed = _usage_event.decode(event[5:])
        except UNREADABLE:
            return False
        if parsed.choices or bytes(parsed.sglext) not in (b"", b"null"):
            return False
        self.usage = usage_in(event)
        return self.usage is not None


def _without_marks(data: bytes, told: list[bytes]) -> bytes:
    """Several events without the lines that tell ids, which go to `told`."""
    event, *marked = data.split(MARK)
    kept = [event]
    for piece in marked:
        mark, newline, rest = piece.partition(b"\n")
        told.append(mark)
        kept.append(newline + rest)
    return b"".join(kept)
