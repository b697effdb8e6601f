"""What the inputs are fed to: everything that reads bytes before they are known to be sound."""

import json
from collections.abc import Callable

from bench.fuzz.placing import read_place
from bench.fuzz.responding import SALT, check_refusal, opened, tell_response
from bench.fuzz.seeds import (
    ANSWERS,
    BODIES,
    CHAT_ANSWERS,
    MESSAGES,
    PLACES,
    REQUESTS,
    RESPONSES,
    USUAL,
)
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.anthropic import CountCall, MessagesCall
from conserve_sglang.router.headers import split_request_headers
from conserve_sglang.router.history import HistoryHash
from conserve_sglang.router.identity import History, name_in
from conserve_sglang.router.messages import chat_answer, completion_answer, generated_answer
from conserve_sglang.router.payload import FORBIDDEN, BadBody, Endpoint, Payload, read_payload
from conserve_sglang.router.problem import Problem, from_worker
from conserve_sglang.router.request_reader import RequestReader
from conserve_sglang.router.translation import UnreadableAnswer
from conserve_sglang.router.verdict import error_in, failure_cause
from conserve_sglang.router.wire import request
from conserve_sglang.workers.sse import UsageFilter
from conserve_sglang.workers.usage import usage_in

MAX_BODY_BYTES = 64 * 1024
_ENDPOINTS = {endpoint.value.encode(): endpoint for endpoint in Endpoint}
_WHOLE = b'{"model":"tiny","max_tokens":1,"messages":[]}'
_STREAMED = b'{"stream":true,' + _WHOLE[1:]
_HASH = HistoryHash(b"secret")


def _refusal(problem: Problem) -> str:
    """A refusal must be complete: a status, and a message in JSON."""
    assert 400 <= problem.status < 600
    assert json.loads(problem.to_json())["error"]["message"]
    return f"refused {problem.status}"


def _open(endpoint: Endpoint, headers: list[tuple[bytes, bytes]], body: bytes) -> str:
    try:
        payload = read_payload(endpoint, body, SALT)
        forward, ours = split_request_headers(headers)
        name_in(ours, payload, by_user=True)
        trail = History(payload, DEFAULT_TENANT.tenant_id, _HASH)
    except BadBody as refused:
        return _refusal(refused.problem)
    _check_sent(payload, forward, body)
    trail.end(b'{"choices":[{"message":{"role":"assistant","content":"a"}}]}', is_stream=False)
    return "served"


def _check_sent(payload: Payload, forward: bytes, body: bytes) -> None:
    """What goes to a worker is one whole request whose body steers nothing."""
    pieces = request(b"host: w\r\n", forward, b'"rid":"ours",', payload)
    head, _, sent = b"".join(pieces).partition(b"\r\n\r\n")
    length = int(head.rpartition(b"content-length: ")[2])
    assert length == len(sent)
    assert head.lower().count(b"\ncontent-length:") == 1
    assert b"\ntransfer-encoding:" not in head.lower()
    fields = json.loads(sent)
    assert fields.pop("rid") == "ours"
    assert FORBIDDEN.isdisjoint(fields)
    assert "cache_salt" not in fields
    assert len(fields["extra_key"]) == 32


def read_request(data: bytes) -> str:
    """A client's connection, its bytes in pieces; whole requests are opened."""
    reader = RequestReader(MAX_BODY_BYTES)
    step = 1 + (data[-1] if data else 0) ** 2
    outcome = "unfinished"
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        if reader.refusal is not None:
            outcome = _refusal(reader.refusal)
            break
    for asked in reader.ready:
        endpoint = _ENDPOINTS.get(asked.target.partition(b"?")[0], Endpoint.CHAT)
        outcome = _open(endpoint, asked.headers, asked.body)
    return outcome


def read_again(data: bytes) -> str:
    """A connection that knows its client's heads reads every request as a fresh one does."""
    knowing, fresh = RequestReader(MAX_BODY_BYTES), RequestReader(MAX_BODY_BYTES)
    knowing.feed(USUAL[0])
    knowing.ready.clear()
    for reader in (knowing, fresh):
        reader.feed(data)
    assert knowing.ready == fresh.ready
    assert knowing.refusal == fresh.refusal
    assert knowing.is_in_request == fresh.is_in_request
    if fresh.refusal is not None:
        return _refusal(fresh.refusal)
    return "served" if fresh.ready else "unfinished"


def read_body(data: bytes) -> str:
    """The body of a turn, at each endpoint."""
    outcomes = [_open(endpoint, [], data) for endpoint in Endpoint]
    return "served" if "served" in outcomes else outcomes[0]


def read_answer(data: bytes) -> str:
    """A worker's answer, its bytes in pieces."""
    step = 1 + (data[-1] if data else 0)
    stripped = UsageFilter()
    passed = b""
    for at in range(0, len(data), step):
        passed += stripped.feed(data[at : at + step])
    passed += stripped.flush()
    assert stripped.usage is not None or passed == data
    error = error_in(data)
    failure_cause(409, data)
    _refusal(from_worker(400, data))
    usage = usage_in(data[-4096:])
    for is_stream in (True, False):
        chat_answer(data, is_stream)
        completion_answer(data, is_stream)
        generated_answer(data, is_stream)
    return "error" if error else "counted" if usage else "read"


def read_message(data: bytes) -> str:
    """The body of an Anthropic message, translated and opened as the turn it becomes."""
    call = MessagesCall("req_1")
    try:
        chat = read_payload(Endpoint.CHAT, call.read(data), SALT)
        History(chat, DEFAULT_TENANT.tenant_id, _HASH)
    except BadBody as refused:
        told = json.loads(call.problem(refused.problem))
        assert told["error"]["message"]
        return f"refused {refused.problem.status} {told['error']['type']}"
    _check_sent(chat, b"", data)
    json.loads(CountCall("req_1").read(data))  # whatever can be asked can be counted
    return "stream" if chat.is_stream else "whole"


def tell_message(data: bytes) -> str:
    """A worker's answer, told as an Anthropic message: event by event, and as a whole."""
    step = 1 + (data[-1] if data else 0)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    stream = MessagesCall("req_1")
    stream.read(_STREAMED)
    told = b"".join(stream.feed(piece, False) for piece in pieces) + stream.feed(b"", True)
    ended = _check_events(told)
    whole = MessagesCall("req_1")
    whole.read(_WHOLE)
    assert whole.feed(data, False) == b""
    try:
        message = json.loads(whole.feed(b"", True))
    except UnreadableAnswer as unreadable:
        _refusal(unreadable.problem)
        return ended
    assert message["content"]
    assert message["stop_reason"]
    return "whole"


def _check_events(told: bytes) -> str:
    """A stream is one message whose blocks are opened and closed in turn, or ends in an error."""
    assert told.endswith(b"\n\n")
    is_begun, open_at, num_blocks = False, None, 0
    events = told[:-2].split(b"\n\n")
    for number, event in enumerate(events):
        name, _, data = event.partition(b"\ndata: ")
        fields = json.loads(data)
        assert name == b"event: " + fields["type"].encode()
        if fields["type"] in ("message_stop", "error"):
            assert number == len(events) - 1
            assert open_at is None or fields["type"] == "error"
        elif fields["type"] == "message_start":
            assert not is_begun
            is_begun = True
        elif fields["type"] == "content_block_start":
            assert (open_at, fields["index"]) == (None, num_blocks)
            open_at, num_blocks = num_blocks, num_blocks + 1
        elif fields["type"] == "content_block_stop":
            assert open_at == fields["index"]
            open_at = None
        elif fields["type"] == "content_block_delta":
            assert is_begun
            assert fields["index"] < num_blocks
    ended: str = fields["type"]
    assert ended in ("message_stop", "error")
    return ended


def read_response(data: bytes) -> str:
    """The body of an OpenAI Responses request, translated and opened as the turn it becomes."""
    try:
        chat = opened(data)
    except BadBody as refused:
        check_refusal(refused.problem)
        return f"refused {refused.problem.status}"
    _check_sent(chat, b"", data)
    return "stream" if chat.is_stream else "whole"


TARGETS: dict[str, tuple[Callable[[bytes], str], list[bytes]]] = {
    "request": (read_request, REQUESTS),
    "again": (read_again, USUAL),
    "body": (read_body, BODIES),
    "answer": (read_answer, ANSWERS),
    "message": (read_message, MESSAGES),
    "told": (tell_message, CHAT_ANSWERS),
    "response": (read_response, RESPONSES),
    "replied": (tell_response, CHAT_ANSWERS),
    "place": (read_place, PLACES),
}
