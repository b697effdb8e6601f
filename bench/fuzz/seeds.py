"""Well-formed inputs to start from, and pieces worth putting where they do not belong."""

import json
from typing import Any


def _body(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "image_url", "x": 1}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALL, _CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
]
BODIES = [
    _body(model="tiny", messages=_HISTORY, stream=True, stream_options={"include_usage": False}),
    _body(messages=[{"role": "user", "content": "hé"}], n=2, user="u", conversation_id="c"),
    _body(model="tiny", prompt="once", max_tokens=3, stream=True),
    _body(prompt=["once"], bootstrap_room=7, rid="x", session_id="y"),
    _body(prompt=[1, 2, 3], stream=False),
    _body(text="once", sampling_params={"max_new_tokens": 3}, stream=True),
    _body(input_ids=[5, 6, 7], session_params={"id": "z"}),
]
_IMAGES = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
    {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
]
_BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "q"}, *_IMAGES]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "Rome"}},
        {"type": "tool_use", "id": "u", "name": "f", "input": {}},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
        {"type": "tool_result", "tool_use_id": "u", "content": "no", "is_error": True},
        {"type": "text", "text": "Go on."},
    ]},
]  # fmt: skip
_TOOLS = [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True}]
_SYSTEM = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}},
           {"type": "text", "text": "x-anthropic-billing-header: 1\nt"}]  # fmt: skip
MESSAGES = [
    _body(model="tiny", max_tokens=5, messages=[{"role": "user", "content": "hé"}]),
    _body(model="tiny", max_tokens=5, system=_SYSTEM, messages=_BLOCKS, tools=_TOOLS,
          tool_choice={"type": "auto", "disable_parallel_tool_use": True}, stream=True,
          metadata={"user_id": "user_1_account__session_2"}, stop_sequences=["END"]),
    _body(model="tiny", max_tokens=5, messages=_BLOCKS[:2], temperature=0.5, top_p=0.9, top_k=4,
          metadata={"user_id": json.dumps({"session_id": "s"})}, tools=_TOOLS,
          tool_choice={"type": "tool", "name": "f"}, thinking={"type": "enabled"}),
    _body(model="tiny", max_tokens=5, system="s", messages=[
              {"role": "user", "content": "q"}, {"role": "assistant", "content": "The"}],
          output_config={"effort": "high",
                         "format": {"type": "json_schema", "schema": {"type": "object"}}}),
]  # fmt: skip
_ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "Look."},
        {"type": "input_image", "image_url": "data:image/png;base64,aGk="},
    ]},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "42"},
]  # fmt: skip
_FUNCTIONS = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}]
RESPONSES = [
    _body(model="tiny", input="hé", max_output_tokens=5, metadata={"a": "b"}),
    _body(model="tiny", input=_ITEMS, instructions="i", tools=_FUNCTIONS, stream=True,
          tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False,
          include=["reasoning.encrypted_content"], store=False),
    _body(model="tiny", input=[_ITEMS[5]], previous_response_id="resp_1", tool_choice="auto",
          reasoning={"effort": "none"}, temperature=0.5, top_p=0.9, user="u", stream=True),
    _body(input=_ITEMS[:2], background=False, conversation=None, prompt=None,
          reasoning={"effort": "high"}, text={"format": {
              "type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}),
]  # fmt: skip
PLACES = [
    _body(conversation_id="c", input_tokens=812, endpoint="chat"),
    _body(input_tokens=9_000, endpoint="generate"),
    _body(conversation_id="good", input_tokens=750, endpoint="completions"),
    _body(turn="1", event="first_token"),
    _body(turn="1", event="done", prompt_tokens=812, output_tokens=64, cached_tokens=0),
    _body(turn="1", event="failed", cause="decoder_failed"),
    _body(turn="1", event="failed", cause="prefix_missing"),
    _body(turn="1", event="abandoned"),
    _body(
        input_tokens=5,
        last={
            "turn": "1",
            "event": "done",
            "prompt_tokens": 812,
            "total_s": 2.5,
            "first_token_s": 0.5,
            "has_called_tools": False,
        },
    ),
    # Both at once: a turn is placed, and then reported.
    _body(conversation_id="c", input_tokens=99, turn="2", event="done", prompt_tokens=99),
    _body(conversation_id="good", input_tokens=1, turn="2", event="failed", cause="decoder_busy"),
]
PATHS = [b"/v1/chat/completions", b"/v1/completions", b"/generate", b"/v1/messages",
         b"/v1/responses", b"/v1/place", b"/health", b"/v1/conversations/c",
         b"/v1/models", b"/ready", b"/live"]  # fmt: skip


def _request(path: bytes, body: bytes, *lines: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % path
    head += b"".join(line + b"\r\n" for line in lines)
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def _chunked(path: bytes, body: bytes) -> bytes:
    pieces = [body[at : at + 40] for at in range(0, len(body), 40)]
    chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % path
    return head + chunks + b"0\r\nx-trailer: y\r\n\r\n"


USUAL = [
    _request(PATHS[0], BODIES[1], b"x-conversation-id: c", b"authorization: Bearer k", last)
    for last in (b"traceparent: 00-a-b-01", b"traceparent: 00-c-d-01")
]
REQUESTS = [
    *(_request(path, body) for path in PATHS[:4] for body in (*BODIES, MESSAGES[1])),
    *(_request(PATHS[4], body) for body in RESPONSES),
    *(_chunked(PATHS[0], body) for body in BODIES),
    _request(PATHS[0], BODIES[1], b"x-conversation-id: c", b"authorization: Bearer k"),
    _request(PATHS[0], BODIES[1], b"expect: 100-continue", b"connection: close, x-a"),
    _request(PATHS[0], BODIES[1], b"connection: upgrade", b"upgrade: h2c", b"http2-settings: A"),
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3,
    b"DELETE /v1/conversations/%41%2f HTTP/1.0\r\n\r\n",
    b"".join(b"HEAD %b HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in PATHS),
    b"HEAD /health HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}HEAD / HTTP/1.0\r\n\r\n",
]
_CHUNK = {"id": "a", "object": "chat.completion.chunk", "model": "tiny", "created": 1}
_USAGE = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3,
          "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
_DELTAS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **_CALL}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": _USAGE},
]


_THOUGHTS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}], "usage": _USAGE},
    *_DELTAS[:2],
    {"choices": [{"index": 0, "delta": {"content": "\n"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, **_CALL}]}}]},
    {
        "choices": [
            {"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}}
        ]
    },
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": "END"}]},
]


def _events(*datas: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + _body(**data) + b"\n\n" for data in datas) + b"data: [DONE]\n\n"


ANSWERS = [
    _events(*({**_CHUNK, **delta} for delta in _DELTAS)),
    _events(*({**_CHUNK, **delta} for delta in _THOUGHTS)),
    _events({"error": {"message": "conserve-refused reason=prefix_missing", "code": 409}}),
    _events(
        {"text": "a", "output_ids": [1, 2], "meta_info": {"finish_reason": None}},
        {"text": "", "meta_info": {"finish_reason": {"type": "abort", "status_code": 500}}},
    ),
    _body(choices=[{"index": 0, "message": {"role": "assistant", "content": "a"}}], usage=_USAGE),
    _body(
        choices=[
            {
                "index": 0,
                "message": {
                    "content": None,
                    "reasoning_content": "hm",
                    "tool_calls": [_CALL, _CALL],
                },
                "finish_reason": "tool_calls",
            }
        ],
        usage=_USAGE,
    ),
    _body(choices=[{"index": 0, "text": "a"}], usage=_USAGE),
    _body(text="a", output_ids=[1], meta_info={"prompt_tokens": 1, "cached_tokens": 0}),
    _body(error={"message": "m", "code": 409, "param": None}),
    _body(detail=[{"loc": ["body"], "msg": "bad"}]),
]
CHAT_ANSWERS = [*ANSWERS[:3], *ANSWERS[4:6]]
PIECES = [
    b"\r\n", b"\n", b"\r\n\r\n", b"\n\n", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b'"',
    b"\\", b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e999", b"-0", b"NaN",
    b"9" * 30, b"[" * 3000, b'{"a":' * 3000, b"content-length: 5\r\n", b"content-length: 0\r\n",
    b"transfer-encoding: chunked\r\n", b"host: y\r\n", b"expect: 100-continue\r\n",
    b"connection: upgrade\r\nupgrade: x\r\n", b"0\r\n\r\n", b"ffffffff\r\n", b"HTTP/1.0",
    b"x-conversation-id: " + b"z" * 300 + b"\r\n", b"a: b\r\n" * 300, b'"stream":true,',
    b'"stream":1,', b'"messages":[],', b'"messages":{},', b'"prompt":[[1]],', b'"text":null,',
    b'"input_ids":[99999999999999999999],', b'"conversation_id":"\\ud800",', b'"user":"\\udfff",',
    b'"tool_calls":[{"function":{"arguments":"{"}}],', b'"stream_options":[],', b"data: ",
    b"data: [DONE]\n\n", b'"choices":[],', b'"prompt_tokens":', b'"completion_tokens":-1',
]  # fmt: skip
