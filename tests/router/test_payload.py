import json
from typing import Any

import pytest

from conserve_sglang.router.payload import FORBIDDEN, BadBody, Endpoint, read_payload
from conserve_sglang.router.wire import request

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def sent(endpoint: Endpoint, body: dict[str, Any] | bytes, members: bytes = b"") -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = request(b"h:1", b"", members, read_payload(endpoint, raw))
    head, _, first = bytes(pieces[0]).partition(b"\r\n\r\n")
    whole = first + b"".join(bytes(piece) for piece in pieces[1:])
    assert b"content-length: %d" % len(whole) in head
    return json.loads(whole)


def test_plain_body_is_spliced_untouched() -> None:
    raw = b' \n{ "messages": [],  "temperature": 1.0e0 }'
    payload = read_payload(Endpoint.CHAT, raw)
    assert bytes(payload.rest) == raw[3:]
    assert not payload.must_rebuild


def test_large_body_is_not_copied() -> None:
    body = json.dumps({**CHAT, "x": "y" * 10_000}).encode()
    assert isinstance(read_payload(Endpoint.CHAT, body).rest, memoryview)
    assert sent(Endpoint.CHAT, body) == json.loads(body)


def test_every_field_by_which_sglang_is_steered_is_forbidden() -> None:
    assert {
        "background", "bootstrap_host", "bootstrap_port", "bootstrap_room", "encoder_urls",
        "http_worker_ipc", "kv_hints", "received_time", "rid", "routing_key", "session_id",
        "session_params", "token_indices_to_pool",
    } <= FORBIDDEN  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), [(b"true", True), (b"false", False), (b"null", False)])
def test_stream_is_true_false_or_null(said: bytes, meant: bool) -> None:
    assert read_payload(Endpoint.CHAT, b'{"messages":[],"stream": %b }' % said).is_stream is meant


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_forbidden_field_is_dropped_and_the_rest_kept(name: str) -> None:
    value = "v" if name == "conversation_id" else 5
    body = {"temperature": 0.5, name: value, **CHAT, "nested": {name: 1}}
    assert sent(Endpoint.CHAT, body) == {"temperature": 0.5, **CHAT, "nested": {name: 1}}


def test_numbers_keep_their_digits_when_a_body_is_rebuilt() -> None:
    raw = b'{"messages":[],"rid":"x","seed":123456789012345678901234567890,"t":1.50}'
    payload = read_payload(Endpoint.CHAT, raw)
    assert bytes(payload.rest).endswith(b'"seed":123456789012345678901234567890,"t":1.50}')


def test_members_come_first_and_once() -> None:
    body = sent(Endpoint.CHAT, {**CHAT, "session_id": "theirs"}, b'"session_id":"ours",')
    assert body["session_id"] == "ours"


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens", "num_bytes"),
    [
        (Endpoint.GENERATE, {"input_ids": [1, 2, 3]}, 3, 0),
        (Endpoint.GENERATE, {"input_ids": [1]}, 1, 0),
        (Endpoint.GENERATE, {"text": None, "input_ids": [1, 2]}, 2, 0),
        (Endpoint.COMPLETION, {"prompt": [5, 6, 7, 8]}, 4, 0),
        (Endpoint.GENERATE, {"text": "abcd"}, None, 6),
        (Endpoint.COMPLETION, {"prompt": ["abcd"]}, None, 6),
        (Endpoint.CHAT, {"messages": []}, None, 2),
        (Endpoint.CHAT, {"messages": [], "tools": [1, 2]}, None, 8),
    ],
)
def test_length_is_counted_where_there_are_tokens(
    endpoint: Endpoint, body: dict[str, Any], tokens: int | None, num_bytes: int
) -> None:
    payload = read_payload(endpoint, json.dumps(body).encode())
    assert (payload.input_tokens, payload.input_bytes) == (tokens, num_bytes)


@pytest.mark.parametrize(
    ("options", "asked", "hides"),
    [
        (None, {"include_usage": True}, True),
        ({"include_usage": True}, {"include_usage": True}, False),
        ({"include_usage": False}, {"include_usage": True}, True),
        ({}, {"include_usage": True}, True),
        ({"x": 1}, {"x": 1, "include_usage": True}, True),
    ],
)
def test_usage_is_always_asked_for(options: Any, asked: Any, hides: bool) -> None:
    for body in ({**CHAT, "stream": True, "stream_options": options}, {**CHAT, "stream": True}):
        if "stream_options" not in body and options is not None:
            continue
        assert sent(Endpoint.CHAT, body)["stream_options"] == asked
        assert read_payload(Endpoint.CHAT, json.dumps(body).encode()).hides_usage is hides


def test_nothing_is_asked_of_native_or_unstreamed_turns() -> None:
    assert "stream_options" not in sent(Endpoint.GENERATE, {"text": "x", "stream": True})
    assert sent(Endpoint.CHAT, CHAT) == CHAT


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"{\x00}", b"\xef\xbb\xbf{}", b'{"a":1}{'])
def test_bad_body_says_what_is_wrong(raw: bytes) -> None:
    with pytest.raises(BadBody, match="Send one JSON object"):
        read_payload(Endpoint.CHAT, raw)
