"""Tenants over the wire: let in by key, and never into each other's conversations."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.tiermap.keys import load_keys, new_key, revoke_key
from tests.fakes.router_cluster import Answer, Cluster, a_cluster

WORKER_KEY = "key-of-the-workers"
OPENING = [{"role": "user", "content": "hello"}]
GOING_ON = [*OPENING, {"role": "assistant", "content": "the answer"}, {"role": "user"} | OPENING[0]]
CHAT = "/v1/chat/completions"


class Tenants:
    """A cluster that asks for keys, and two tenants of it."""

    def __init__(self, cluster: Cluster, file: Path, keys: dict[str, str]) -> None:
        self.cluster = cluster
        self.file = file
        self.keys = keys

    def headers(self, tenant: str, **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}", **more}

    async def turn(
        self, tenant: str, messages: list[dict[str, str]] = OPENING, name: str | None = None
    ) -> Answer:
        more = {} if name is None else {"x-conversation-id": name}
        headers = self.headers(tenant, **more)
        return await self.cluster.post(CHAT, {"messages": messages}, headers)

    async def look(self, tenant: str, method: str, name: str) -> Answer:
        path = f"/v1/conversations/{name}"
        return await self.cluster.request(method, path, headers=self.headers(tenant))


@pytest.fixture
async def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tenants]:
    file = tmp_path / "keys.yaml"
    keys = {name: new_key(file, name) for name in ("a", "b")}
    monkeypatch.setenv("WORKERS_KEY", WORKER_KEY)
    settings: dict[str, Any] = {
        "auth": AuthSettings(keys_file=str(file)),
        "worker_api_key_env": "WORKERS_KEY",
    }
    async with a_cluster(worker_api_key=WORKER_KEY, **settings) as cluster:
        yield Tenants(cluster, file, keys)


async def test_without_a_key_nothing_but_health_is_answered(tenants: Tenants) -> None:
    for path in ("/v1/models", "/v1/conversations/c", "/nothing"):
        answer = await tenants.cluster.request("GET", path)
        assert answer.status == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    refused = await tenants.cluster.chat("hello")
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (await tenants.cluster.request("GET", "/health")).status == 200
    assert not tenants.cluster["p0"].turns


async def test_workers_see_their_own_key_and_never_the_clients(tenants: Tenants) -> None:
    api_key = {"x-api-key": tenants.keys["b"], "api-key": "more"}
    for headers in (tenants.headers("a"), api_key):
        answer = await tenants.cluster.post(CHAT, {"messages": OPENING}, headers)
        assert answer.status == 200
    await tenants.look("a", "DELETE", answer.headers["x-conversation-id"])
    for name in ("p0", "d0", "d1"):
        worker = tenants.cluster[name]
        assert worker.probes
        for seen in worker.seen:
            assert seen.headers["authorization"] == f"Bearer {WORKER_KEY}"
            assert not {"x-api-key", "api-key"} & set(seen.headers)
            assert not any(key in str(seen.headers) for key in tenants.keys.values())


async def test_one_name_is_two_conversations_for_two_tenants(tenants: Tenants) -> None:
    await tenants.turn("a", name="task")
    await tenants.turn("b", name="task")
    decoders = [tenants.cluster[name] for name in ("d0", "d1")]
    sessions = {seen.body["session_id"] for worker in decoders for seen in worker.turns}
    assert len(sessions) == 2
    a, b = [(await tenants.look(tenant, "GET", "task")).json() for tenant in ("a", "b")]
    assert {a["key"], b["key"]} == sessions
    assert (a["turns"], b["turns"]) == (1, 1)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_another_tenants_conversation_is_as_unknown_as_any(
    tenants: Tenants, method: str
) -> None:
    told = (await tenants.turn("a", name="task")).headers["x-conversation-id"]
    label = (await tenants.turn("a")).headers["x-conversation-id"]
    key = (await tenants.look("a", "GET", "task")).json()["key"]
    unknown = await tenants.look("b", method, "never-was")
    assert unknown.status == 404
    del unknown.headers["x-request-id"]
    for name in (told, label, key):
        answer = await tenants.look("b", method, name)
        assert answer.headers.pop("x-request-id")
        assert (answer.status, answer.headers, answer.body) == (404, unknown.headers, unknown.body)
    assert (await tenants.look("a", "GET", "task")).status == 200
    assert (await tenants.look("a", "DELETE", label)).status == 200


async def test_history_of_another_tenant_is_not_continued(tenants: Tenants) -> None:
    first = (await tenants.turn("a")).headers["x-conversation-id"]
    taken = (await tenants.turn("b", GOING_ON)).headers["x-conversation-id"]
    assert taken != first
    assert len(tenants.cluster["p0"].turns) == 2
    assert (await tenants.turn("a", GOING_ON)).headers["x-conversation-id"] == first
    assert len(tenants.cluster["p0"].turns) == 2


async def test_key_of_another_tenants_conversation_names_a_new_one(tenants: Tenants) -> None:
    await tenants.turn("a", name="task")
    key = (await tenants.look("a", "GET", "task")).json()["key"]
    await tenants.turn("b", name=key)
    assert len(tenants.cluster["p0"].turns) == 2
    assert (await tenants.look("a", "GET", "task")).json()["turns"] == 1


async def test_one_connection_can_serve_two_tenants(tenants: Tenants) -> None:
    client = await tenants.cluster.connect()
    for tenant in ("a", "b", "a"):
        headers = tenants.headers(tenant, **{"x-conversation-id": "task"})
        client.ask(CHAT, {"messages": OPENING}, headers)
        assert (await client.answer()).status == 200
    client.ask(CHAT, {"messages": OPENING}, {"x-conversation-id": "task"})
    assert (await client.answer()).status == 401
    assert len(tenants.cluster["p0"].turns) == 2


async def test_revoked_key_ends_with_the_reload_on_open_connections_too(tenants: Tenants) -> None:
    client = await tenants.cluster.connect()
    headers = tenants.headers("a")
    client.ask(CHAT, {"messages": OPENING}, headers)
    assert (await client.answer()).status == 200
    revoke_key(tenants.file, load_keys(tenants.file)[0].digests[0].hex()[:8])
    tenants.cluster.service.reload_keys()
    client.ask(CHAT, {"messages": OPENING}, headers)
    assert (await client.answer()).status == 401
    assert (await tenants.turn("b")).status == 200
    assert (await tenants.turn("a")).status == 401


async def test_key_file_that_became_wrong_changes_nothing(
    tenants: Tenants, caplog: pytest.LogCaptureFixture
) -> None:
    tenants.file.write_text("tenants: oops")
    tenants.cluster.service.reload_keys()
    assert "the keys stay as they are" in caplog.text
    assert (await tenants.turn("a")).status == 200
    assert (await tenants.cluster.chat("hello")).status == 401


async def test_missing_worker_key_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORKERS_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"router.worker_api_key_env: .*WORKERS_KEY is not set"):
        async with a_cluster(worker_api_key_env="WORKERS_KEY"):
            pass


async def test_without_keys_a_clients_own_goes_on_to_the_workers(cluster: Cluster) -> None:
    headers = {"authorization": "Bearer of-the-client"}
    await cluster.post(CHAT, {"messages": OPENING}, headers)
    assert cluster["d0"].turns[0].headers["authorization"] == "Bearer of-the-client"


async def test_request_that_makes_every_worker_fail_costs_other_tenants_none(
    tenants: Tenants,
) -> None:
    cluster = tenants.cluster
    decoders = ("d0", "d1")
    for number in range(12):
        for name in decoders:
            cluster[name].faults.statuses = [500] * 10
        poisoned = await tenants.turn("a", name=f"p{number}")
        assert poisoned.status in {502, 503}
    for name in decoders:
        cluster[name].faults.statuses.clear()
    health = (await cluster.request("GET", "/health")).json()
    assert health["status"] == "ok"
    ran_on = {
        (await tenants.turn("b", name=f"g{number}")).headers["x-conserve-decoder"]
        for number in range(4)
    }
    assert ran_on == set(decoders)


@pytest.mark.parametrize("more", ["content-length: 150000\r\n", "transfer-encoding: chunked\r\n"])
async def test_stranger_is_refused_before_the_body_is_taken_in(tenants: Tenants, more: str) -> None:
    metrics = tenants.cluster.service.door.metrics
    for expects in ("", "expect: 100-continue\r\n"):
        client = await tenants.cluster.connect()
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{expects}{more}\r\n".encode())
        answer = await client.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
    assert metrics.num_unauthorized == 2
    health = await tenants.cluster.request("GET", "/metrics", tenants.cluster.service.control_port)
    assert b"conserve_router_unauthorized_total 2.0" in health.body


async def test_body_that_comes_late_is_waited_for_where_the_key_is_valid(tenants: Tenants) -> None:
    client = await tenants.cluster.connect()
    body = json.dumps({"messages": OPENING}).encode()
    for tenant in ("a", "b"):
        key = f"authorization: Bearer {tenants.keys[tenant]}\r\nexpect: 100-continue\r\n"
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{key}content-length: {len(body)}\r\n\r\n"
        client.send(head.encode())
        assert (await client.head())[0] == 100
        client.send(body)
        answer = await client.answer()
        assert answer.status == 200
        name = answer.headers["x-conversation-id"]
        assert (await tenants.look(tenant, "GET", name)).status == 200
