"""Energy in an answer's `usage`, for clients that ask for it: `usage.conserve`.

Asked for by the header `x-conserve-usage: energy`, of every endpoint that is a turn. It stands in
`usage`, in SGLang's own `/generate` in `meta_info`; of a stream in its last event that has one,
which in OpenAI's completions is the usage event that `stream_options.include_usage` asks for.

Books are settled a second or two after the fact, so what stands there is what was known when the
answer ended, and `is_final` is false: `GET /v1/conversations/{id}` tells the rest. What is not
known is null and never 0: mostly the turn's own joules, of a first turn all of it, and in a router
of several processes everything. `energy` itself is null where no energy is read.
"""

from dataclasses import dataclass

import msgspec

from conserve_sglang.router.anthropic import MessagesCall
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.payload import Endpoint, Payload
from conserve_sglang.router.responses import ResponsesCall

ASKS_FOR = b"energy"
_END = b"\n\n"
_MOST_HELD_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Where an API's answers have room for it: the key, its brace included, and what marks the
    event of a stream that it goes into."""

    key: bytes
    marks: tuple[bytes, ...]


COMPLETION = Shape(b'"usage":{', (b'"choices":[]',))
GENERATE = Shape(b'"meta_info":{', (b'"finish_reason":{',))
MESSAGES = Shape(b'"usage":{', (b"event: message_delta\n",))
# The request's tools are told again before the counts, and may have a field of that name.
RESPONSES = Shape(b'"usage":{', (b"event: response.completed\n", b"event: response.incomplete\n"))
_COUNTS = b'"input_tokens"'


class UsageNote:
    """Puts it into one answer's bytes; `reads_energy`: whether the tier map has energy read."""

    __slots__ = ("_is_stream", "_reads_energy", "_rest", "_shape")

    def __init__(
        self, is_stream: bool, shape: Shape = COMPLETION, *, reads_energy: bool = True
    ) -> None:
        self._is_stream = is_stream
        self._shape = shape
        self._reads_energy = reads_energy
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
            return self._noted(data, conversation, turn_index)
        if not is_last and len(data) < _MOST_HELD_BYTES:
            whole, end, self._rest = data.rpartition(_END)
            data = whole + end
        if self._shape.key not in data:
            return data
        return _END.join(
            self._noted(event, conversation, turn_index)
            if any(mark in event for mark in self._shape.marks)
            else event
            for event in data.split(_END)
        )

    def _noted(self, data: bytes, conversation: Conversation, turn_index: int) -> bytes:
        """A quote inside JSON text is escaped, so the key can only match where it is a key."""
        shape = self._shape
        key = shape.key + _COUNTS if shape is RESPONSES else shape.key
        at = data.rfind(key)
        if at < 0:
            return data
        at += len(shape.key)
        energy = _energy(conversation, turn_index) if self._reads_energy else None
        member = b'"conserve":' + msgspec.json.encode({"energy": energy})
        comma = b"" if data[at : at + 1] == b"}" else b","
        return data[:at] + member + comma + data[at:]


def note_for(value: bytes, payload: Payload, reads_energy: bool) -> UsageNote | None:
    """What a request's header asks for; None if that is nothing known."""
    if value.strip().lower() != ASKS_FOR:
        return None
    shape = GENERATE if payload.endpoint is Endpoint.GENERATE else COMPLETION
    if isinstance(payload.translation, MessagesCall):
        shape = MESSAGES
    elif isinstance(payload.translation, ResponsesCall):
        shape = RESPONSES
    return UsageNote(payload.is_stream, shape, reads_energy=reads_energy)


def _energy(conversation: Conversation, turn_index: int) -> dict[str, object]:
    used = conversation.energy
    if used is None:
        unknown = ("turn_joules", "conversation_joules", "phases", "origin", "split")
        return {**dict.fromkeys(unknown), "is_final": False}
    turn_j = used.turns.get(turn_index)
    return {
        "turn_joules": None if turn_j is None else round(turn_j, 6),
        "conversation_joules": round(used.joules, 6),
        "phases": {phase: round(joules, 6) for phase, joules in used.phases.items()},
        "origin": used.origin,
        "split": used.split,
        "is_final": False,
    }
