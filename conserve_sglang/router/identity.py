"""Which conversation a turn belongs to: named by its client, or found by its history."""

from array import array
from collections.abc import Mapping

import msgspec

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.conversations import MAX_NAME_BYTES, Conversation, ConversationTable
from conserve_sglang.router.headers import NAMING_HEADERS
from conserve_sglang.router.history import FiledAt
from conserve_sglang.router.messages import (
    canonical_messages,
    chat_answer,
    completion_answer,
    generated_answer,
)
from conserve_sglang.router.payload import BadBody, Endpoint, Payload, text_field
from conserve_sglang.router.problem import Problem

_ids = msgspec.json.Decoder(list[int])
_text = msgspec.json.Decoder(str)
_TEXT = b"text"
_TOKENS = b"tokens"


def name_in(headers: Mapping[bytes, bytes], payload: Payload, *, by_user: bool) -> bytes | None:
    """What the client calls the conversation; None if it does not say. Raises `BadBody`."""
    name = _name_in(headers, payload, by_user=by_user)
    if name is not None and len(name) > MAX_NAME_BYTES:
        raise _name_too_long(len(name))
    return name


def _name_too_long(num_bytes: int) -> BadBody:
    message = f"The conversation's name has {num_bytes} bytes. Use at most {MAX_NAME_BYTES}."
    return BadBody(Problem(status=400, code="name_too_long", message=message))


def _name_in(headers: Mapping[bytes, bytes], payload: Payload, *, by_user: bool) -> bytes | None:
    for header in NAMING_HEADERS:
        name = headers.get(header)
        if name:
            return name
    if payload.conversation_name:
        return payload.conversation_name.encode()
    if by_user:
        user = text_field(payload.fields, "user")
        if user:
            return b"user:" + user.encode()
    return None


class History:
    """What a turn says about its past, kept until its answer is known."""

    __slots__ = ("_endpoint", "_messages", "_prompt", "_tenant", "taken_from")

    def __init__(self, payload: Payload, tenant: TenantId) -> None:
        self._tenant = tenant
        self._endpoint = payload.endpoint
        self._messages: list[bytes] | None = None
        self._prompt: tuple[bytes, bytes] | None = None
        self.taken_from: FiledAt | None = None
        fields = payload.fields
        if payload.endpoint is Endpoint.CHAT:
            self._messages = canonical_messages(bytes(fields["messages"]))
        elif payload.endpoint is Endpoint.COMPLETION:
            self._prompt = _prompt(fields["prompt"])
        else:
            null = msgspec.Raw(b"null")
            text = fields.get("text", null)
            self._prompt = _prompt(fields["input_ids"] if text == null else text)

    def find(self, table: ConversationTable) -> Conversation:
        """The tenant's conversation this history continues; a new one if there is none."""
        found = None
        if self._messages:
            found = table.history.take_by_messages(self._tenant, self._messages)
        elif self._prompt is not None:
            found = table.history.take_by_prompt(self._tenant, *self._prompt)
        conversation = table.by_key(found[0]) if found else None
        if conversation is None:
            conversation = table.new(self._tenant)
        elif found is not None:
            conversation.filed_at = None
            self.taken_from = found[1]
        return conversation

    def end(self, table: ConversationTable, body: bytes, is_stream: bool) -> FiledAt | None:
        """Where the conversation is filed now that `body` answered the turn."""
        if self._messages:
            answer = chat_answer(body, is_stream)
            if answer is None:
                return None
            return table.history.end_of_messages(self._tenant, [*self._messages, answer])
        if self._prompt is None:
            return None
        kind, prompt = self._prompt
        said = _answer_bytes(self._endpoint, kind, body, is_stream)
        if said is None:
            return None
        return table.history.end_of_prompt(self._tenant, kind, prompt + said)


def _prompt(raw: msgspec.Raw) -> tuple[bytes, bytes] | None:
    """A prompt as (kind, bytes): UTF-8 text, or token ids of four bytes each."""
    try:
        if bytes(raw)[:1] == b'"':
            return _TEXT, _text.decode(raw).encode()
        return _TOKENS, _packed(_ids.decode(raw))
    except (msgspec.DecodeError, OverflowError, UnicodeEncodeError):
        return None


def _packed(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


def _answer_bytes(endpoint: Endpoint, kind: bytes, body: bytes, is_stream: bool) -> bytes | None:
    if endpoint is Endpoint.COMPLETION:
        text = completion_answer(body, is_stream) if kind == _TEXT else None
        return None if text is None else text.encode()
    generated = generated_answer(body, is_stream)
    if generated is None:
        return None
    text, ids = generated
    return text.encode() if kind == _TEXT else _packed(ids)
