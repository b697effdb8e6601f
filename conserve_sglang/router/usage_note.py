"""Energy in an answer's `usage`, for clients that ask for it: `usage.conserve`.

Asked for by the header `x-conserve-usage: energy`, in OpenAI's chat and text completions; of a
stream it is in the usage event, which `stream_options.include_usage` asks for. Books are settled a
second or two after the fact, so what stands there is what was billed when the answer ended, and
`is_final` is false: `GET /v1/conversations/{id}` tells the rest. `energy` is null where nothing was
billed yet, where no energy is read, and in a router of several processes.
"""

import msgspec

from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.payload import Endpoint

ASKS_FOR = b"energy"
_USAGE = b'"usage":{'
_END = b"\n\n"
_LAST_CHOICE = b'"choices":[]'
_MOST_HELD_BYTES = 1024 * 1024
_ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETION)


def asks_for_note(value: bytes | None, endpoint: Endpoint) -> bool:
    """Whether a request's header asks for it, and its answer has a place for it."""
    return value is not None and value.strip().lower() == ASKS_FOR and endpoint in _ENDPOINTS


class UsageNote:
    """Puts it into one answer's bytes."""

    __slots__ = ("_is_stream", "_rest")

    def __init__(self, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._rest = b""

    def feed(
        self, data: bytes, is_last: bool, conversation: Conversation, turn_index: int
    ) -> bytes:
        """The same bytes, with the note where the token counts are; whole events of a stream."""
        data = self._rest + data
        self._rest = b""
        if not self._is_stream:
            if not is_last and len(data) < _MOST_HELD_BYTES:
                self._rest = data
                return b""
            return _noted(data, conversation, turn_index)
        if not is_last and len(data) < _MOST_HELD_BYTES:
            whole, end, self._rest = data.rpartition(_END)
            data = whole + end
        if _USAGE not in data:
            return data
        return _END.join(
            _noted(event, conversation, turn_index) if _LAST_CHOICE in event else event
            for event in data.split(_END)
        )


def _noted(data: bytes, conversation: Conversation, turn_index: int) -> bytes:
    """A quote inside JSON text is escaped, so the key can only match where it is a key."""
    at = data.rfind(_USAGE)
    if at < 0:
        return data
    at += len(_USAGE)
    member = b'"conserve":' + msgspec.json.encode({"energy": _energy(conversation, turn_index)})
    comma = b"" if data[at : at + 1] == b"}" else b","
    return data[:at] + member + comma + data[at:]


def _energy(conversation: Conversation, turn_index: int) -> dict[str, object] | None:
    used = conversation.energy
    if used is None:
        return None
    return {
        "turn_joules": round(used.turns.get(turn_index, 0.0), 6),
        "conversation_joules": round(used.joules, 6),
        "phases": {phase: round(joules, 6) for phase, joules in used.phases.items()},
        "origin": used.origin,
        "split": used.split,
        "is_final": False,
    }
