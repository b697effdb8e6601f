"""Workers met, refused, lost; what /health, /metrics and the control port say of them."""

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.router import watch
from conserve_sglang.router.fleet import WorkerState
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import is_ready
from tests.fakes.router_cluster import Cluster, a_cluster


async def test_decoder_without_the_plugin_is_refused_with_a_reason() -> None:
    async with a_cluster(without_plugin=("d0",), is_met=False) as cluster:
        await cluster.until_met("p0", "d1")
        await cluster.until(lambda: cluster.state_of("d0") is WorkerState.REFUSED)
        await cluster.chat("hello", name="a")
        await cluster.chat("hello", name="b")
        assert not cluster["d0"].turns
        health = await cluster.request("GET", "/health")
        assert health.json()["status"] == "degraded"
        assert "plugin" in health.json()["workers"]["d0"]["reason"]


async def test_worker_in_the_wrong_mode_is_refused() -> None:
    async with a_cluster(is_met=False) as cluster:
        await cluster.until_met()
        port = cluster["d1"].port
        await cluster["d1"].stop()
        await cluster.until(lambda: cluster.state_of("d1") is WorkerState.LOST)
        cluster["d1"].mode = "null"
        await cluster["d1"].start(port)
        await cluster.until(lambda: cluster.state_of("d1") is WorkerState.REFUSED)
        health = await cluster.request("GET", "/health")
        assert "--disaggregation-mode decode" in health.json()["workers"]["d1"]["reason"]


async def test_health_follows_the_workers(cluster: Cluster) -> None:
    assert (await cluster.request("GET", "/health")).status == 200
    await cluster["p0"].stop()
    await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
    health = await cluster.request("GET", "/health")
    assert (health.status, health.json()["status"]) == (200, "degraded")
    assert health.json()["roles_without_worker"] == ["prefill"]
    for name in ("d0", "d1"):
        await cluster[name].stop()
    await cluster.until(lambda: not cluster.service.fleet.num_decoders_up)
    health = await cluster.request("GET", "/health")
    assert (health.status, health.json()["status"]) == (503, "unavailable")


async def test_probes_are_cheap_and_full_only_once(cluster: Cluster) -> None:
    await cluster.until(lambda: len(cluster["d0"].probes) > 5)
    assert cluster["d0"].probes.count("/server_info") == 1
    assert set(cluster["d0"].probes) == {"/ready", "/server_info"}


async def test_metrics_count_what_happened(cluster: Cluster) -> None:
    await cluster.chat("hello")
    await cluster.chat("hello", "the answer", "more")
    await cluster.post("/v1/chat/completions", b"{")
    assert (await cluster.request("GET", "/metrics")).status == 404
    answer = await cluster.request("GET", "/metrics", cluster.service.control_port)
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    for line in (
        'conserve_router_turns_total{outcome="answered"} 2.0',
        'conserve_router_placements_total{reason="first_turn"} 1.0',
        'conserve_router_placements_total{reason="pinned"} 1.0',
        'conserve_router_phase_one_reentries_total{cause="prefix_missing"} 0.0',
        "conserve_router_kv_transfers_total 1.0",
        "conserve_router_kv_misses_total 0.0",
        'conserve_router_queued_turns{queue="phase_one"} 0.0',
        "conserve_router_conversations 1.0",
        'conserve_router_ttft_seconds_count{role="prefill",tier="d0"} 1.0',
        'conserve_router_ttft_seconds_count{role="decode",tier="d0"} 1.0',
        'conserve_router_ttfet_seconds_count{role="prefill",tier="d0"} 1.0',
        'conserve_router_e2e_seconds_count{role="decode",tier="d0"} 1.0',
        'conserve_worker_up{role="decode",tier="d0",worker="d0"} 1.0',
    ):
        assert line in lines
    resident = len("hello") + len("the answer") + len("more") + len("the answer")
    name = 'conserve_worker_kv_resident_tokens{role="decode",tier="d0",worker="d0"}'
    assert f"{name} {float(resident)}" in lines


async def test_control_port_shows_and_changes_workers(cluster: Cluster) -> None:
    port = cluster.service.control_port
    shown = await cluster.request("GET", "/admin/workers", port)
    by_id = {worker["id"]: worker for worker in shown.json()["workers"]}
    assert by_id["d0"]["kv_capacity_tokens"] == 100_000
    assert by_id["p0"]["role"] == "prefill"
    lost = await cluster.request("POST", "/admin/workers/d0/lost", port)
    assert lost.json()["state"] == "lost"
    assert (await cluster.request("POST", "/admin/workers/d0/up", port)).status == 200
    await cluster.until_met("d0")
    unknown = await cluster.request("POST", "/admin/workers/d9/lost", port)
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "worker_not_found")


async def test_control_port_is_on_the_loopback_wherever_the_router_listens() -> None:
    async with a_cluster(host="0.0.0.0") as cluster:
        control = cluster.service._control_server
        assert control is not None
        await cluster.until(lambda: bool(control.listening))
        ((host, _),) = control.listening
        assert host == "127.0.0.1"


async def test_control_port_has_health_metrics_and_conversations(cluster: Cluster) -> None:
    port = cluster.service.control_port
    await cluster.chat("hello", name="a/b")
    assert (await cluster.request("GET", "/health", port)).json()["status"] == "ok"
    assert b"conserve_router_turns_total" in (await cluster.request("GET", "/metrics", port)).body
    described = await cluster.request("GET", "/v1/conversations/a%2Fb", port)
    assert described.json()["turns"] == 1
    assert (await cluster.request("GET", "/v1/conversations/zz", port)).status == 404


async def test_worker_of_another_model_is_refused_with_what_to_do() -> None:
    async with a_cluster(is_met=False) as cluster:
        await cluster.until_met()
        await restarted(cluster, "d1", served_name="other")
        await cluster.until(lambda: cluster.state_of("d1") is WorkerState.REFUSED)
        health = await cluster.request("GET", "/health")
        reason = health.json()["workers"]["d1"]["reason"]
        assert "'other'" in reason
        assert "--served-model-name tiny" in reason


async def restarted(cluster: Cluster, name: str, served_name: str) -> None:
    port = cluster[name].port
    await cluster[name].stop()
    await cluster.until(lambda: cluster.state_of(name) is WorkerState.LOST)
    cluster[name].served_name = served_name
    await cluster[name].start(port)


async def test_decoder_lost_without_restarting_is_emptied_before_it_gets_turns(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FLUSH_PAUSE_S", 0.01)
    await cluster.chat("hello")
    assert cluster["d0"].resident
    cluster["d0"].faults.num_busy_flushes = 2
    for name in ("d0", "p0"):
        port = cluster.service.control_port
        await cluster.request("POST", f"/admin/workers/{name}/lost", port)
    await cluster.until_met("d0", "p0")
    assert not cluster["d0"].resident
    assert [cluster[name].num_flushes for name in ("d0", "d1", "p0")] == [3, 0, 0]


async def test_decoder_that_stays_busy_is_taken_back_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "FLUSH_PAUSE_S", 0.001)
    cluster["d0"].faults.num_busy_flushes = 10_000
    await cluster.request("POST", "/admin/workers/d0/lost", cluster.service.control_port)
    await cluster.until_met("d0")
    assert "did not flush its cache" in caplog.text


async def test_worker_that_is_gone_is_logged_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "conserve_sglang.router")
    await cluster["d0"].stop()
    worker = cluster.service.fleet.worker(WorkerId("d0"))
    await cluster.until(lambda: worker.reason.startswith("no connection"))
    num_probes = 0

    async def counted(pool: ConnectionPool, timeout_s: float) -> bool:
        nonlocal num_probes
        num_probes += pool is worker.control
        return await is_ready(pool, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "is_ready", counted)
        await cluster.until(lambda: num_probes > 3)
    assert caplog.text.count("worker d0 is not up") == 1


async def test_fault_in_a_probe_does_not_end_the_probing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(watch, "is_ready", broken)
    await cluster.until(lambda: cluster.state_of("d0") is WorkerState.LOST)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    await cluster.until_met()


async def test_lost_worker_forgets_its_conversations(cluster: Cluster) -> None:
    await cluster.chat("hello")
    await cluster.request("POST", "/admin/workers/d0/lost", cluster.service.control_port)
    await cluster.until_met("d0")
    await cluster.chat("hello", "the answer", "more")
    assert len(cluster["p0"].turns) == 2
