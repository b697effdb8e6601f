"""Token counts in the answers of workers, and what else an answer's end says.

Apart from `sse`, which is compiled where that is asked for: msgspec makes objects of these classes.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from conserve_sglang.workers.unreadable import UNREADABLE

TAIL_BYTES = 4096
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


def may_hold_usage(data: bytes) -> bool:
    """Whether events may have one among them that is there for the token counts alone."""
    # rfind, since CPython's forward search takes longer over such an event.
    return data.rfind(b'"choices":[]') >= 0 or data.rfind(b'"choices": []') >= 0


def usage_alone(event: bytes) -> Usage | None:
    """The counts of an event that is there for them alone; None for any other event."""
    if not event.startswith(b"data:") or not may_hold_usage(event):
        return None
    try:
        parsed = _usage_event.decode(event[5:])
    except UNREADABLE:
        return None
    if parsed.choices or bytes(parsed.sglext) not in (b"", b"null"):
        return None
    return usage_in(event)
