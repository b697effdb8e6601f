"""HEAD: the head that GET would have, and never a body, so that the next answer is in step."""

from pathlib import Path

import pytest

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import Client, Cluster, a_cluster

NEXT = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
TURNS = ["/v1/chat/completions", "/v1/completions", "/generate", "/v1/messages", "/v1/responses"]


def head(path: str, *lines: str) -> bytes:
    text = "".join(f"{line}\r\n" for line in ("host: x", *lines))
    return f"HEAD {path} HTTP/1.1\r\n{text}\r\n".encode()


async def in_step(client: Client, request: bytes) -> tuple[int, dict[str, str]]:
    """The answer to a HEAD, after which the next request of the connection is answered."""
    client.send(request + NEXT)
    status, headers = await client.head()
    following = await client.answer()
    assert following.json()["data"][0]["id"] == "tiny"
    return status, headers


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny"])
async def test_what_get_serves_has_the_same_head(cluster: Cluster, path: str) -> None:
    got = await cluster.request("GET", path)
    status, headers = await in_step(await cluster.connect(), head(path))
    assert headers.pop("x-request-id") != got.headers.pop("x-request-id")
    assert (status, headers) == (got.status, got.headers)
    assert int(headers["content-length"]) == len(got.body) > 0


async def test_conversation_that_is_there_and_one_that_is_not(cluster: Cluster) -> None:
    await cluster.chat("hello")
    client = await cluster.connect()
    statuses = [(await in_step(client, head(f"/v1/conversations/{name}")))[0] for name in "cx"]
    assert statuses == [200, 404]
    assert (await cluster.request("GET", "/v1/conversations/c")).status == 200


@pytest.mark.parametrize("path", [*TURNS, "/v1/messages/count_tokens", "/v1/place"])
async def test_where_only_post_is_served_it_is_405_without_a_body(
    cluster: Cluster, path: str
) -> None:
    status, headers = await in_step(await cluster.connect(), head(path))
    assert (status, headers["allow"]) == (405, "POST")


async def test_unknown_paths_are_404_without_a_body(cluster: Cluster) -> None:
    client = await cluster.connect()
    for path in ("/v2/nothing", "/v1/models/other", "/v1/messages/nothing"):
        assert (await in_step(client, head(path)))[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (head("/health", "content-length: 999999999"), 413),
        (head("/health", *("a: b" for _ in range(300))), 431),
        (head("/health", "host: y"), 400),
        (head("/health", "transfer-encoding: gzip"), 501),
    ],
)
async def test_refused_head_has_no_body_either(
    cluster: Cluster, request_bytes: bytes, expected: int
) -> None:
    client = await cluster.connect()
    client.send(request_bytes)
    status, headers = await client.head()
    assert (status, headers["connection"]) == (expected, "close")
    assert int(headers["content-length"]) > 0
    assert await client.reader.read() == b""


async def test_garbage_behind_a_head_is_told_with_a_body(cluster: Cluster) -> None:
    client = await cluster.connect()
    client.send(head("/health") + b"\x00\x01 nothing\r\n\r\n")
    assert (await client.head())[0] == 200
    refused = await client.answer()
    assert refused.json()["error"]["code"] == "malformed_request"


async def test_router_that_holds_too_much_says_so_without_a_body(cluster: Cluster) -> None:
    door = cluster.service.door
    door._held.max_bytes = 10
    for first, rest in ((b"", head("/health")), (b"HEAD /he", head("/health")[8:])):
        client = await cluster.connect()
        if first:
            client.send(first)
            await cluster.until(lambda: door._held.num_bytes > 0)
        client.send(rest)
        status, headers = await client.head()
        assert (status, headers["retry-after"]) == (503, "1")
        assert await client.reader.read() == b""


async def test_without_a_key_it_is_401_without_a_body(tmp_path: Path) -> None:
    """Whether it is whole or refused by its head, before its body is there."""
    new_key(tmp_path / "keys.yaml", "a")
    auth = AuthSettings(keys_file=str(tmp_path / "keys.yaml"))
    async with a_cluster(auth=auth) as cluster:
        client = await cluster.connect()
        client.send(head("/v1/models") + head("/health"))
        assert [(await client.head())[0] for _ in range(2)] == [401, 200]
        client = await cluster.connect()
        client.send(head("/v1/models", "content-length: 5"))
        assert (await client.head())[0] == 401
        assert await client.reader.read() == b""


async def test_control_port_answers_in_step_too(cluster: Cluster) -> None:
    client = await cluster._client(cluster.service.control_port)
    for path, expected in (("/health", 200), ("/metrics", 200), ("/nothing", 404)):
        client.send(head(path))
        assert (await client.head())[0] == expected
    client.send(head("/health").replace(b"HEAD", b"GET", 1))
    assert (await client.answer()).json()["status"] == "ok"
