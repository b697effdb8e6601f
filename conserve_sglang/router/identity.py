"""Which conversation a turn belongs to: named by its client, or found by its history."""

from array import array
from collections.abc import Mapping

import msgspec

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.conversations import MAX_NAME_BYTES
from conserve_sglang.router.headers import (
    CLAUDE_AGENT_HEADER,
    CLAUDE_SESSION_HEADER,
    NAMING_HEADERS,
)
from conserve_sglang.router.history import ChatTrail, FiledAt, HistoryHash, PromptTrail
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
_QUOTE = ord('"')
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
            return _of_agent(name, headers) if header is CLAUDE_SESSION_HEADER else name
    if payload.conversation_name:
        return payload.conversation_name.encode()
    if by_user:
        user = text_field(payload.fields, "user")
        if user:
            return b"user:" + user.encode()
    return None


def _of_agent(session: bytes, headers: Mapping[bytes, bytes]) -> bytes:
    """Agents that Claude Code starts within a session have histories of their own."""
    agent = headers.get(CLAUDE_AGENT_HEADER)
    return session + b"/" + agent if agent else session


class History:
    """What a turn says about its past, kept until its answer is known."""

    __slots__ = ("_endpoint", "kind", "taken_from", "trail")

    def __init__(self, payload: Payload, tenant: TenantId, hashing: HistoryHash) -> None:
        self._endpoint = payload.endpoint
        self.kind = _TEXT
        self.trail: ChatTrail | PromptTrail | None = None
        self.taken_from: FiledAt | None = None
        fields = payload.fields
        if payload.endpoint is Endpoint.CHAT:
            messages = canonical_messages(fields["messages"])
            if messages:
                self.trail = hashing.chat(tenant, messages)
            return
        if payload.endpoint is Endpoint.COMPLETION:
            prompt = _prompt(fields["prompt"])
        else:
            null = msgspec.Raw(b"null")
            text = fields.get("text", null)
            prompt = _prompt(fields["input_ids"] if text == null else text)
        if prompt is not None:
            self.kind = prompt[0]
            self.trail = hashing.prompt(tenant, *prompt)

    def end(self, body: bytes, is_stream: bool) -> FiledAt | None:
        """Where the conversation is filed now that `body` answered the turn. To be asked once."""
        if self.trail is None:
            return None
        if self._endpoint is Endpoint.CHAT:
            answer = chat_answer(body, is_stream)
        else:
            answer = _answer_bytes(self._endpoint, self.kind, body, is_stream)
        return None if answer is None else self.trail.end(answer)


def _prompt(raw: msgspec.Raw) -> tuple[bytes, bytes] | None:
    """A prompt as (kind, bytes): UTF-8 text, or token ids of four bytes each."""
    try:
        if memoryview(raw)[0] == _QUOTE:
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
