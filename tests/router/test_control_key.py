"""The control port's own key, and what strangers are told without one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.fleet import WorkerState
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.router_cluster import Answer, Cluster, a_cluster

KEY = "key-of-the-operator"


@pytest.fixture
async def keyed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("ADMIN_KEY", KEY)
    async with a_cluster(admin_key_env="ADMIN_KEY") as cluster:
        yield cluster


async def ask(cluster: Cluster, method: str, path: str, authorization: str = "") -> Answer:
    port = cluster.service.control_port
    headers = {"authorization": authorization} if authorization else {}
    return await cluster.request(method, path, port, headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/admin/workers"),
        ("POST", "/admin/workers/d0/lost"),
        ("POST", "/admin/workers/d0/up"),
        ("GET", "/v1/conversations/c"),
        ("GET", "/nothing"),
    ],
)
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer "])
async def test_nothing_is_told_or_done_without_the_key(
    keyed: Cluster, method: str, path: str, authorization: str
) -> None:
    answer = await ask(keyed, method, path, authorization)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.body.decode()
    assert keyed.state_of("d0") is WorkerState.UP


async def test_everything_is_there_with_the_key(keyed: Cluster) -> None:
    await keyed.chat("hello")
    key = f"Bearer {KEY}"
    assert b"conserve_router_turns_total" in (await ask(keyed, "GET", "/metrics", key)).body
    assert (await ask(keyed, "GET", "/v1/conversations/c", key)).json()["turns"] == 1
    assert "workers" in (await ask(keyed, "GET", "/health", key)).json()
    assert (await ask(keyed, "POST", "/admin/workers/d0/lost", key)).status == 200
    assert keyed.state_of("d0") is WorkerState.LOST


async def test_strangers_are_told_the_status_alone(keyed: Cluster) -> None:
    health = await ask(keyed, "GET", "/health")
    assert (health.status, health.json()) == (200, {"status": "ok"})
    assert (await ask(keyed, "GET", "/health", "Bearer wrong")).json() == {"status": "ok"}
    await ask(keyed, "POST", "/admin/workers/p0/drain", f"Bearer {KEY}")
    assert (await ask(keyed, "GET", "/health")).json() == {"status": "degraded"}
    assert (await ask(keyed, "GET", "/ready")).json() == {"status": "not_ready"}
    assert (await ask(keyed, "GET", "/ready", f"Bearer {KEY}")).json()["why"] == "no_prefiller"
    assert (await ask(keyed, "GET", "/live")).json() == {"status": "alive"}


async def test_main_port_that_asks_for_keys_tells_the_status_alone(tmp_path: Path) -> None:
    new_key(tmp_path / "keys.yaml", "a")
    async with a_cluster(auth=AuthSettings(keys_file=str(tmp_path / "keys.yaml"))) as cluster:
        assert (await cluster.request("GET", "/health")).json() == {"status": "ok"}
        await cluster["p0"].stop()
        await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
        health = await cluster.request("GET", "/health")
        assert (health.status, health.json()) == (200, {"status": "degraded"})
        for path in ("/ready", "/readiness"):
            ready = await cluster.request("GET", path)
            assert (ready.status, ready.json()) == (503, {"status": "not_ready"})
        assert (await cluster.request("GET", "/live")).json() == {"status": "alive"}


async def test_operator_sees_every_tenants_conversations(tmp_path: Path) -> None:
    keys = {name: new_key(tmp_path / "keys.yaml", name) for name in ("a", "b")}
    async with a_cluster(auth=AuthSettings(keys_file=str(tmp_path / "keys.yaml"))) as cluster:
        for key in keys.values():
            headers = {"authorization": f"Bearer {key}", "x-conversation-id": "task"}
            body = {"messages": [{"role": "user", "content": "hello"}]}
            await cluster.post("/v1/chat/completions", body, headers)
        a, b = [
            (await ask(cluster, "GET", f"/v1/conversations/task?tenant={name}")).json()["key"]
            for name in keys
        ]
        assert a != b
        assert (await ask(cluster, "GET", f"/v1/conversations/{b}")).json()["key"] == b
        assert (await ask(cluster, "GET", "/v1/conversations/task")).status == 404


async def test_errors_there_are_json_and_bodies_are_bounded(keyed: Cluster) -> None:
    key = f"Bearer {KEY}"
    for method, path, status, code in (
        ("GET", "/nothing", 404, "unknown_path"),
        ("PUT", "/admin/workers", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
    ):
        answer = await ask(keyed, method, path, key)
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        if path == "/admin/workers":
            assert answer.headers["allow"] == "GET, HEAD, POST"
    client = await keyed._client(keyed.service.control_port)
    lines = {"authorization": key, "content-length": "300000000"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    client.send(f"POST /admin/workers HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode())
    answer = await client.answer()  # before any of the body
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert await client.is_closed()


async def test_stalled_requests_do_not_keep_the_operator_out(keyed: Cluster) -> None:
    stalled = [await keyed._client(keyed.service.control_port) for _ in range(200)]
    for client in stalled:
        client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization:")
    key = f"Bearer {KEY}"
    assert (await ask(keyed, "GET", "/admin/workers", key)).status == 200
    assert (await keyed.chat("hello")).status == 200
