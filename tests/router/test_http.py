"""The client side of HTTP/1.1: framing, order, bounds, and requests that are not turns."""

import asyncio
import json

import pytest

from tests.fakes.router_cluster import Cluster

TURN = {"messages": [{"role": "user", "content": "hello"}]}


def raw_turn(extra: str = "", body: bytes = b'{"messages":[]}', version: str = "1.1") -> bytes:
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def test_one_connection_serves_many_requests(cluster: Cluster) -> None:
    client = await cluster.connect()
    for _ in range(3):
        client.ask("/v1/chat/completions", TURN)
        assert (await client.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order(cluster: Cluster) -> None:
    cluster["p0"].faults.delay_s = 0.1
    client = await cluster.connect()
    client.send(
        raw_turn("x-conversation-id: a\r\n")
        + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
        + raw_turn("x-conversation-id: b\r\n")
    )
    first, models, third = [await client.answer() for _ in range(3)]
    assert first.headers["x-conversation-id"] == "a"
    assert models.json()["data"][0]["id"] == "tiny"
    assert third.headers["x-conversation-id"] == "b"


async def test_request_that_arrives_during_an_answer_waits_its_turn(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.05
    client = await cluster.connect()
    client.ask("/v1/chat/completions", {**TURN, "stream": True})
    await client.head()
    client.ask("/v1/chat/completions", TURN)
    body, is_whole = await client._chunks()
    assert is_whole
    assert body.endswith(b"[DONE]\n\n")
    assert (await client.answer()).status == 200


async def test_chunked_request_body(cluster: Cluster) -> None:
    client = await cluster.connect()
    body = json.dumps(TURN).encode()
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for start in range(0, len(body), 10):
        piece = body[start : start + 10]
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await asyncio.sleep(0.001)
    client.send(b"0\r\n\r\n")
    assert (await client.answer()).status == 200
    assert cluster["d0"].turns[0].raw.endswith(body[1:])


async def test_body_in_many_segments(cluster: Cluster) -> None:
    client = await cluster.connect()
    data = raw_turn(body=json.dumps(TURN).encode())
    for start in range(0, len(data), 5):
        client.send(data[start : start + 5])
        await asyncio.sleep(0.0005)
    assert (await client.answer()).status == 200


async def test_expect_100_continue(cluster: Cluster) -> None:
    client = await cluster.connect()
    body = json.dumps(TURN).encode()
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    status, _ = await client.head()
    assert status == 100
    client.send(body)
    assert (await client.answer()).status == 200


async def test_offer_of_http_2_is_ignored_and_the_body_read(cluster: Cluster) -> None:
    client = await cluster.connect()
    offer = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    data = raw_turn(offer, json.dumps(TURN).encode())
    client.send(data + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await client.answer()).status == 200
    assert (await client.answer()).json()["data"][0]["id"] == "tiny"
    for start in range(0, len(data), 7):
        client.send(data[start : start + 7])
        await asyncio.sleep(0.0005)
    assert (await client.answer()).status == 200
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(b'{"messages":[]}'), b'{"messages":[]}')
    head = f"POST /generate HTTP/1.1\r\nhost: x\r\n{offer}transfer-encoding: chunked\r\n\r\n"
    client.send(head.replace("/generate", "/v1/chat/completions").encode() + chunked)
    assert (await client.answer()).status == 200
    for seen in cluster["d0"].turns:
        assert not {"upgrade", "http2-settings"} & set(seen.headers)


async def test_tunnel_is_a_400(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\nupgrade: y\r\n\r\n")
    assert (await client.answer()).status == 400


async def test_http_1_0_client_gets_an_unchunked_stream_and_a_close(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(raw_turn(body=b'{"messages":[],"stream":true}', version="1.0"))
    answer = await client.answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_connection_close_is_honoured(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(raw_turn("connection: close\r\n"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.is_closed()


async def test_body_over_the_limit_is_413_before_it_is_sent(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n")
    answer = await client.answer()
    assert answer.status == 413
    assert answer.json()["error"]["code"] == "body_too_large"


async def test_chunked_body_over_the_limit_is_413(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(30):
        client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
    assert (await client.answer()).status == 413
    assert (await cluster.chat("hello")).status == 200


async def test_head_over_the_limit_is_431(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(b"GET /health HTTP/1.1\r\nx-a: " + b"a" * 100_000)
    assert (await client.answer()).status == 431


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /generate HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /generate HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"POST /generate HTTP/1.1\r\ncontent-length: -3\r\n\r\n",
        b"POST /generate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_malformed_or_smuggling_requests_are_400_and_a_close(
    cluster: Cluster, data: bytes
) -> None:
    client = await cluster.connect()
    client.send(data)
    answer = await client.answer()
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert not cluster["d0"].turns


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_body"),
        (b"{", "malformed_body"),
        (b"[]", "malformed_body"),
        (b"{}", "malformed_body"),
        (b'{"messages":[1,2}', "malformed_body"),
        (b'{"messages":[],"x":"\xff"}', "malformed_body"),
        (b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "malformed_body"),
        ('{"messages":[]}'.encode("utf-16"), "malformed_body"),
        (b'{"messages":"x"}', "wrong_type"),
        (b'{"model":"tiny"}', "wrong_type"),
        (b'{"messages":[],"stream":true,"stream_options":3}', "wrong_type"),
        (b'{"messages":[],"conversation_id":3}', "wrong_type"),
        (b'{"messages":[],"stream":1}', "wrong_type"),
        (b'{"messages":[],"stream":"true"}', "wrong_type"),
        (b'{"messages":[],"stream":0}', "wrong_type"),
    ],
)
async def test_bad_bodies_are_400_with_a_reason(cluster: Cluster, body: bytes, code: str) -> None:
    answer = await cluster.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not cluster["d0"].turns


async def test_more_than_one_prompt_is_refused(cluster: Cluster) -> None:
    for path, body in (
        ("/generate", {"text": ["a", "b"]}),
        ("/generate", {"input_ids": [[1], [2]]}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
    ):
        answer = await cluster.post(path, body)
        assert answer.status == 400
        assert answer.json()["error"]["code"] == "one_prompt_only"
    assert (await cluster.post("/v1/completions", {"prompt": ["a"]})).status == 200


async def test_unknown_model_is_404(cluster: Cluster) -> None:
    answer = await cluster.chat("hello", model="gpt-9")
    assert answer.status == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize("model", ["tiny", "tiny:adapter", "models/tiny"])
async def test_served_model_and_its_adapters_are_known(cluster: Cluster, model: str) -> None:
    assert (await cluster.chat("hello", model=model)).status == 200


async def test_unknown_path_and_method(cluster: Cluster) -> None:
    unknown = await cluster.request("GET", "/v2/nothing")
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "unknown_path")
    message = unknown.json()["error"]["message"]
    for path in ("/v1/place", "/v1/place/report", "/v1/messages", "/ready", "/v1/responses/ID"):
        assert path in message
    wrong = await cluster.request("GET", "/v1/chat/completions")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert (await cluster.request("POST", "/health")).status == 405


async def test_bad_requests_disturb_nothing_else(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.05
    stream = asyncio.ensure_future(cluster.chat("hello", stream=True))
    for body in (b"{", b"[]", b"\x00"):
        await cluster.post("/v1/chat/completions", body)
    assert (await stream).events[-1] == "[DONE]"
