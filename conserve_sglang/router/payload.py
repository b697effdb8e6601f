"""What the router reads of a request body, and the bodies it makes of it.

A body is opened one level deep: the top-level keys with their values as raw bytes. That costs
less than searching it once for each forbidden name, settles duplicate and escaped keys as the
worker's own parser would, and refuses malformed JSON. Values are looked into only where something
must be read; the bytes sent on are the client's own.
"""

from dataclasses import dataclass
from enum import Enum

import msgspec

from conserve_sglang.router.problem import Problem
from conserve_sglang.router.salt import SALT_FIELDS, Salt
from conserve_sglang.router.translation import Translation
from conserve_sglang.workers.unreadable import UNREADABLE

Fields = dict[str, msgspec.Raw]


class Endpoint(Enum):
    """The endpoints that are turns of a conversation."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    GENERATE = "/generate"

    __hash__ = object.__hash__  # members are one of a kind, and Enum's own is Python code


# Fields that place a request, or tie it to state on a worker. Never taken from a client.
FORBIDDEN = frozenset(
    {
        "background",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_pair_key",
        "conversation_id",
        "data_parallel_rank",
        "decode_tp_size",
        "disagg_prefill_dp_rank",
        "encoder_urls",
        "http_worker_ipc",
        "kv_hints",
        "received_time",
        "rid",
        "routed_dp_rank",
        "routing_key",
        "session_id",
        "session_params",
        "token_indices_to_pool",
    }
)
_SALTED = FORBIDDEN.union(SALT_FIELDS)  # where the router keeps tenants' KV apart
_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
_NULL = msgspec.Raw(b"null")
MAX_CHOICES = 128  # as in OpenAI's API
_COPIED_BYTES = 8192  # below this a copy is cheaper than a second write
WITH_USAGE = b'"stream_options":{"include_usage":true},'

_fields = msgspec.json.Decoder(Fields)
_stream_options = msgspec.json.Decoder(Fields | None)
_text = msgspec.json.Decoder(str)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_QUOTE = ord('"')
_BRACKET = ord("[")
_BRACE = ord("{")


class BadBody(Exception):
    """The body cannot be served; carries the answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True, init=False)
class Payload:
    """A body taken apart: `inserts` + `rest` is what follows the opening brace.

    `input_tokens` is set where the body counts its tokens itself, else `input_bytes` is what the
    length is derived from.
    """

    endpoint: Endpoint
    fields: Fields
    rest: bytes | memoryview
    inserts: bytes
    is_stream: bool
    hides_usage: bool
    input_bytes: int
    input_tokens: int | None
    conversation_name: str | None
    must_rebuild: bool
    translation: Translation | None

    def __init__(self, endpoint: Endpoint, fields: Fields, *, is_stream: bool) -> None:
        self.endpoint = endpoint
        self.fields = fields
        self.rest = b""
        self.inserts = b""
        self.is_stream = is_stream
        self.hides_usage = False
        self.input_bytes = 0
        self.input_tokens = None
        self.conversation_name = None
        self.must_rebuild = False
        self.translation = None


def read_payload(endpoint: Endpoint, body: bytes, salt: Salt | None = None) -> Payload:
    """Open a body; raises `BadBody`. With a tenant's `salt`, its KV is that tenant's alone."""
    fields = _open(body)
    is_stream = _is_stream(fields)
    payload = Payload(endpoint, fields, is_stream=is_stream)
    _measure(payload)
    forbidden = FORBIDDEN
    if salt is not None:
        payload.inserts = salt.member
        forbidden = _SALTED
    if not forbidden.isdisjoint(fields):
        _drop_forbidden(payload, forbidden, salt)
    if is_stream and endpoint is not Endpoint.GENERATE:
        _ask_for_usage(payload)
    if payload.must_rebuild:
        # Everything after the opening brace, each value's bytes as the client wrote them.
        payload.rest = msgspec.json.encode(payload.fields)[1:]
    else:
        at = body.index(b"{") + 1
        payload.rest = body[at:] if len(body) < _COPIED_BYTES else memoryview(body)[at:]
    return payload


def _is_stream(fields: Fields) -> bool:
    """SGLang takes 1 and "true" for true: what the router takes for false would be a stream."""
    raw = fields.get("stream")
    if raw == _TRUE:
        return True
    if raw is not None and raw not in (_FALSE, _NULL):
        raise _wrong_type("stream", "true or false")
    return False


def _drop_forbidden(payload: Payload, forbidden: frozenset[str], salt: Salt | None) -> None:
    fields = payload.fields
    if salt is not None:
        said = tuple(text_field(fields, name) or "" for name in SALT_FIELDS)
        payload.inserts = salt.member_with(said)
    raw = fields.get("conversation_id")
    if raw is not None:
        payload.conversation_name = _string(raw, "conversation_id")
    payload.fields = {name: value for name, value in fields.items() if name not in forbidden}
    payload.must_rebuild = True


def _ask_for_usage(payload: Payload) -> None:
    """Have the worker count tokens, and remember whether the client wants to see that."""
    options = payload.fields.get("stream_options")
    if options is None:
        payload.inserts += WITH_USAGE
        payload.hides_usage = True
    elif not _asks_usage(options):
        payload.fields = {**payload.fields, "stream_options": _asking_usage(options)}
        payload.hides_usage = payload.must_rebuild = True


def _open(body: bytes) -> Fields:
    try:
        if not body.isascii():
            body.decode()
        fields = _fields.decode(body)
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    except msgspec.ValidationError as error:
        raise _malformed("it is not a JSON object") from error
    except msgspec.DecodeError as error:
        raise _malformed(str(error)) from error
    if not fields:
        raise _malformed("it is an empty object")
    return fields


def _malformed(why: str) -> BadBody:
    message = f"The request body cannot be read: {why}. Send one JSON object in UTF-8."
    return BadBody(Problem(status=400, code="malformed_body", message=message))


def _wrong_type(name: str, expected: str) -> BadBody:
    message = f"The field {name!r} must be {expected}."
    return BadBody(Problem(status=400, code="wrong_type", message=message, param=name))


def _string(raw: msgspec.Raw, name: str) -> str:
    try:
        return _text.decode(raw)
    except msgspec.DecodeError as error:
        raise _wrong_type(name, "a string") from error


def text_field(fields: Fields, name: str) -> str | None:
    """A field's text; None if it is absent or null. Raises `BadBody` if it is something else."""
    raw = fields.get(name)
    if raw is None or raw == _NULL:
        return None
    return _string(raw, name)


def _measure(payload: Payload) -> None:
    """Set the input's length, in tokens where the body has them, in bytes of JSON elsewhere."""
    fields = payload.fields
    if payload.endpoint is Endpoint.CHAT:
        messages = memoryview(fields.get("messages", _NULL))
        if messages[0] != _BRACKET:
            raise _wrong_type("messages", "a list of messages")
        tools = fields.get("tools")
        payload.input_bytes = messages.nbytes + (memoryview(tools).nbytes if tools else 0)
        return
    names = ("prompt",) if payload.endpoint is Endpoint.COMPLETION else ("text", "input_ids")
    for name in names:
        raw = fields.get(name)
        if raw is not None and raw != _NULL:
            _measure_prompt(payload, name, raw)
            return
    raise _wrong_type(" or ".join(names), "given")


def _measure_prompt(payload: Payload, name: str, raw: msgspec.Raw) -> None:
    view = memoryview(raw)
    if view[0] == _QUOTE and name != "input_ids":
        payload.input_bytes = view.nbytes
        return
    if view[0] != _BRACKET:
        raise _wrong_type(name, "a string or a list of token ids")
    first = bytes(view[1:64]).lstrip()[:1]
    if first.isdigit():
        payload.input_tokens = bytes(raw).count(b",") + 1
        return
    if name == "prompt" and first == b'"':
        prompts = _list.decode(raw)
        if len(prompts) == 1:  # a list of one prompt is answered as that prompt is
            payload.fields = {**payload.fields, name: prompts[0]}
            payload.must_rebuild = True
            payload.input_bytes = memoryview(prompts[0]).nbytes
            return
    message = f"The field {name!r} must hold one prompt: a turn belongs to one conversation."
    raise BadBody(Problem(status=400, code="one_prompt_only", message=message, param=name))


def num_choices(payload: Payload) -> int:
    """How many answers a turn asks for (`n`); raises `BadBody`."""
    fields = payload.fields
    if payload.endpoint is Endpoint.GENERATE:
        raw = fields.get("sampling_params")
        if raw is None:
            return 1
        first = memoryview(raw)[0]
        if first == _BRACKET:
            raise _wrong_type("sampling_params", "one object, as there is one prompt")
        fields = _fields.decode(raw) if first == _BRACE else {}
    said, best_of = fields.get("n"), fields.get("best_of")
    return 1 if said is None and best_of is None else _num_choices(said, best_of)


def _num_choices(said: msgspec.Raw | None, best_of: msgspec.Raw | None) -> int:
    digits = b"1" if said is None or said == _NULL else bytes(said)
    if not digits.isdigit() or len(digits) > 3 or not 1 <= int(digits) <= MAX_CHOICES:
        raise _wrong_type("n", f"a whole number from 1 to {MAX_CHOICES}")
    if best_of is not None and best_of != _NULL and bytes(best_of) != digits:
        message = (
            "The field 'best_of' must be as large as 'n', or left out: SGLang has no way to"
            " choose among answers. Ask for more with 'n', and choose."
        )
        problem = Problem(status=400, code="best_of_not_served", message=message, param="best_of")
        raise BadBody(problem)
    return int(digits)


def _asks_usage(options: msgspec.Raw) -> bool:
    return (_options(options) or {}).get("include_usage") == _TRUE


def _asking_usage(options: msgspec.Raw) -> msgspec.Raw:
    asked = {**(_options(options) or {}), "include_usage": _TRUE}
    return msgspec.Raw(msgspec.json.encode(asked))


def _options(options: msgspec.Raw) -> Fields | None:
    try:
        asked: Fields | None = _stream_options.decode(options)
    except UNREADABLE as error:
        raise _wrong_type("stream_options", "an object") from error
    return asked
