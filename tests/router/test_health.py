"""Workers that fail, freeze or are slow: the circuit breaker and the signs of life."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from conserve_sglang.core.health import BreakerSettings, HealthSettings
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.router.worker import WorkerState
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.workers.breaker import BreakerState
from tests.fakes.router_cluster import Cluster, a_cluster

BREAKER = BreakerSettings(consecutive_failures=3, cooldown_s=0.2, max_cooldown_s=0.4, trial_turns=2)
HEALTH = HealthSettings(
    probe_interval_s=0.05, stall_s=0.2, stall_probe_timeout_s=0.3, breaker=BREAKER
)


@pytest.fixture
async def watched() -> AsyncIterator[Cluster]:
    """p0, d0 and d1 behind a router that is quick to suspect."""
    async with a_cluster(health=HEALTH) as cluster:
        yield cluster


def breaker_of(cluster: Cluster, name: str) -> BreakerState:
    return cluster.service.fleet.worker(WorkerId(name)).breaker.state


async def failing(cluster: Cluster, name: str) -> None:
    """Let turns fail on one decoder until its breaker opens; no client sees it."""
    cluster[name].faults.statuses += [500] * BREAKER.consecutive_failures
    for number in range(12):
        assert (await cluster.chat("hello", name=f"f{number}")).status == 200
        if breaker_of(cluster, name) is BreakerState.OPEN:
            return
    raise AssertionError("the breaker did not open")


async def test_failing_decoder_gets_no_turns_until_its_cool_down_is_over(watched: Cluster) -> None:
    await failing(watched, "d0")
    seen = len(watched["d0"].turns)
    for number in range(4):
        answer = await watched.chat("hello", name=f"n{number}")
        assert answer.headers["x-conserve-decoder"] == "d1"
    assert len(watched["d0"].turns) == seen
    health = await watched.request("GET", "/health")
    assert (health.status, health.json()["status"]) == (200, "degraded")
    d0 = health.json()["workers"]["d0"]
    assert (d0["state"], d0["breaker"]) == ("up", "open")
    assert "3 turns in a row failed" in d0["reason"]
    port = watched.service.control_port
    metrics = (await watched.request("GET", "/metrics", port)).body.decode()
    labels = '{role="decode",tier="d0",worker="d0"}'
    for name, value in (("up", 1), ("takes_turns", 0), ("breaker", 2)):
        assert f"conserve_worker_{name}{labels} {value}.0" in metrics
    assert f"conserve_worker_breaker_openings_total{labels} 1.0" in metrics
    assert "# TYPE conserve_worker_breaker_openings_total counter" in metrics


async def test_conversation_on_a_failing_decoder_moves_at_its_next_turn(watched: Cluster) -> None:
    first = await watched.chat("hello")
    assert first.headers["x-conserve-decoder"] == "d0"
    await failing(watched, "d0")
    moved = await watched.chat("hello", "the answer", "more")
    assert moved.headers["x-conserve-decoder"] == "d1"
    assert moved.headers["x-conserve-reason"] == "decoder_lost"
    await watched.until(lambda: bool(watched["d0"].closed_sessions))


async def test_breaker_closes_after_trial_turns(watched: Cluster) -> None:
    await failing(watched, "d0")
    await watched.until(lambda: breaker_of(watched, "d0") is BreakerState.HALF_OPEN)
    for number in range(20):
        await watched.chat("hello", name=f"t{number}")
        await asyncio.sleep(0.02)
    assert breaker_of(watched, "d0") is BreakerState.CLOSED
    assert (await watched.request("GET", "/health")).json()["status"] == "ok"


async def test_failed_trial_opens_the_breaker_again_and_costs_no_client(watched: Cluster) -> None:
    await failing(watched, "d0")
    watched["d0"].faults.statuses.append(500)
    await watched.until(lambda: breaker_of(watched, "d0") is BreakerState.HALF_OPEN)
    for number in range(20):
        assert (await watched.chat("hello", name=f"t{number}")).status == 200
        if breaker_of(watched, "d0") is BreakerState.OPEN:
            break
    assert breaker_of(watched, "d0") is BreakerState.OPEN
    assert watched.service.door.metrics.turns[Outcome.REJECTED] == 0


async def test_no_more_turns_at_once_on_trial_than_it_takes(watched: Cluster) -> None:
    await failing(watched, "d0")
    watched["d0"].faults.delay_s = 0.3
    before = len(watched["d0"].turns)
    await watched.until(lambda: breaker_of(watched, "d0") is BreakerState.HALF_OPEN)
    answers = await asyncio.gather(*(watched.chat("hello", name=f"t{n}") for n in range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len(watched["d0"].turns) - before == BREAKER.trial_turns


async def test_failing_prefiller_gets_no_turns() -> None:
    modes = {"p0": "prefill", "p1": "prefill", "d0": "decode"}
    async with a_cluster(modes, health=HEALTH) as cluster:
        await failing(cluster, "p0")
        seen = len(cluster["p0"].turns)
        for number in range(3):
            assert (await cluster.chat("hello", name=f"n{number}")).status == 200
        assert len(cluster["p0"].turns) == seen


async def test_restarted_worker_begins_with_a_closed_breaker(watched: Cluster) -> None:
    await failing(watched, "d0")
    await watched.request("POST", "/admin/workers/d0/lost", watched.service.control_port)
    await watched.until_met("d0")
    assert breaker_of(watched, "d0") is BreakerState.CLOSED
    watched["d1"].faults.statuses += [500]
    assert (await watched.chat("hello", name="x")).status == 200


async def test_turn_on_a_frozen_decoder_is_answered_elsewhere(watched: Cluster) -> None:
    await watched.chat("hello")
    watched["d0"].freeze()
    answer = await asyncio.wait_for(watched.chat("hello", "the answer", "more"), 3)
    assert answer.status == 200
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert watched.state_of("d0") is WorkerState.LOST
    health = await watched.request("GET", "/health")
    assert "silent for 0." in health.json()["workers"]["d0"]["reason"]
    watched["d0"].thaw()


async def test_new_turn_on_a_frozen_prefiller_is_prefilled_elsewhere() -> None:
    modes = {"p0": "prefill", "p1": "prefill", "d0": "decode"}
    async with a_cluster(modes, health=HEALTH) as cluster:
        cluster["p0"].freeze()
        answer = await asyncio.wait_for(cluster.chat("hello", stream=True), 3)
        assert answer.events[-1] == "[DONE]"
        assert answer.headers["x-conserve-prefiller"] == "p1"
        cluster["p0"].thaw()


async def test_frozen_decoder_is_emptied_and_taken_back_when_it_goes_on(watched: Cluster) -> None:
    await watched.chat("hello")
    watched["d0"].freeze()
    await watched.chat("hello", "the answer", "more")
    watched["d0"].thaw()
    await watched.until_met("d0")
    assert watched["d0"].num_flushes == 1
    assert not watched["d0"].resident


async def test_slow_decoder_that_answers_probes_is_not_lost(watched: Cluster) -> None:
    watched["d0"].faults.delay_s = watched["d1"].faults.delay_s = 1.2
    answer = await watched.chat("hello")
    assert answer.status == 200
    assert len(watched["d0"].turns) == 1
    assert watched.state_of("d0") is WorkerState.UP


async def test_decoder_with_slow_probes_but_some_bytes_is_not_lost() -> None:
    health = HealthSettings(probe_interval_s=0.05, stall_s=0.2, stall_probe_timeout_s=0.3)
    async with a_cluster(health=health) as cluster:
        for name in ("d0", "d1"):
            cluster[name].faults.probe_delay_s = 2.0
            cluster[name].faults.event_delay_s = 0.15
            cluster[name].answer = "a b c d e f g h"
        answer = await cluster.chat("hello", stream=True)
        assert answer.events[-1] == "[DONE]"
        assert cluster.state_of("d0") is WorkerState.UP


async def test_client_that_does_not_read_makes_no_worker_suspect(watched: Cluster) -> None:
    watched["d0"].answer = " ".join(["z" * 2000] * 2000)
    watched["d0"].faults.probe_delay_s = 5.0
    client = await watched.connect()
    client.ask("/v1/chat/completions", {"messages": [], "stream": True})
    await client.head()
    await asyncio.sleep(1.0)
    assert watched.state_of("d0") is WorkerState.UP


async def test_turn_waits_for_a_decoder_that_comes_back(watched: Cluster) -> None:
    ports = {name: watched[name].port for name in ("d0", "d1")}
    for name in ports:
        await watched[name].stop()
    await watched.until(lambda: watched.service.fleet.num_decoders_up == 0)
    waiting = asyncio.ensure_future(watched.chat("hello"))
    await watched.until(lambda: watched.service.door.executor.num_open_turns == 1)
    await watched["d1"].start(ports["d1"])
    assert (await waiting).status == 200


async def test_turn_does_not_wait_where_every_decoder_was_refused() -> None:
    async with a_cluster(without_plugin=("d0", "d1"), is_met=False) as cluster:
        await cluster.until(lambda: cluster.state_of("d0") is WorkerState.REFUSED)
        await cluster.until(lambda: cluster.state_of("d1") is WorkerState.REFUSED)
        answer = await cluster.chat("hello")
        assert answer.json()["error"]["code"] == "no_worker"


async def test_scheduler_that_hangs_behind_a_server_that_answers_is_found_out() -> None:
    health = HealthSettings(
        probe_interval_s=0.05, stall_s=0.2, hang_s=0.3, hang_probe_timeout_s=0.2
    )
    async with a_cluster(health=health) as cluster:
        cluster["d0"].faults.delay_s = 60.0
        cluster["d0"].health_status = 503
        answer = await asyncio.wait_for(cluster.chat("hello"), 5)
        assert (answer.status, answer.headers["x-conserve-decoder"]) == (200, "d1")
        reasons = (await cluster.request("GET", "/health")).json()["workers"]
        assert reasons["d1"]["state"] == "up"


async def test_scheduler_that_is_well_may_take_its_time() -> None:
    health = HealthSettings(
        probe_interval_s=0.05, stall_s=0.2, hang_s=0.2, hang_probe_timeout_s=0.2
    )
    async with a_cluster(health=health) as cluster:
        cluster["d0"].faults.delay_s = cluster["d1"].faults.delay_s = 1.2
        assert (await cluster.chat("hello")).status == 200
        assert cluster["d0"].probes.count("/health") > 1
        assert len(cluster["d0"].turns) == 1
