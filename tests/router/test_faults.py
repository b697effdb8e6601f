"""Workers that fail, answers that break off, clients that leave."""

import asyncio

import pytest

from conserve_sglang.core.ids import TurnId
from conserve_sglang.core.tier import Overload
from conserve_sglang.dispatch import AbortTurn, Event, FailureCause
from conserve_sglang.router import legs
from conserve_sglang.router.fleet import WorkerState
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.patching import replaces_a_part
from tests.fakes.router_cluster import Cluster, a_cluster


async def test_failing_decoder_before_the_first_byte_is_not_seen(cluster: Cluster) -> None:
    cluster["d0"].faults.statuses.append(500)
    answer = await cluster.chat("hello")
    assert answer.status == 200


async def test_failing_prefiller_aborts_the_decoder_and_the_turn_is_tried_again(
    cluster: Cluster,
) -> None:
    cluster["p0"].faults.statuses.append(500)
    answer = await cluster.chat("hello", stream=True)
    assert answer.status == 200
    assert cluster["d0"].turns[0].was_aborted
    assert len(cluster["p0"].turns) == 2


async def test_head_without_a_body_is_a_failure_not_an_answer(cluster: Cluster) -> None:
    cluster["d0"].faults.num_cuts_after_head = 1
    answer = await cluster.chat("hello", stream=True)
    assert answer.events[-1] == "[DONE]"


async def test_killed_decoder_costs_its_conversations_one_new_phase_one(cluster: Cluster) -> None:
    await cluster.chat("hello")
    await cluster["d0"].stop()
    answer = await cluster.chat("hello", "the answer", "more")
    assert answer.status == 200
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert len(cluster["p0"].turns) == 2
    assert cluster.state_of("d0") is WorkerState.LOST


async def test_decoder_that_comes_back_is_empty_and_takes_turns(cluster: Cluster) -> None:
    await cluster.chat("hello")
    port = cluster["d0"].port
    await cluster["d0"].stop()
    await cluster.until(lambda: cluster.state_of("d0") is WorkerState.LOST)
    cluster["d0"].resident.clear()
    await cluster["d0"].start(port)
    await cluster.until_met("d0")
    answer = await cluster.chat("hello", "the answer", "more")
    assert answer.status == 200
    assert len(cluster["p0"].turns) == 2


async def test_turn_that_its_only_decoder_fails_as_it_dies_waits_for_another(
    cluster: Cluster,
) -> None:
    port = cluster["d1"].port
    await cluster["d1"].stop()
    await cluster.until(lambda: cluster.state_of("d1") is WorkerState.LOST)
    cluster["d0"].faults.num_cuts_before_head = 2
    turn = asyncio.create_task(cluster.chat("hello"))
    await cluster.until(lambda: not cluster["d0"].faults.num_cuts_before_head)
    await cluster["d0"].stop()
    await cluster.until(lambda: cluster.state_of("d0") is WorkerState.LOST)
    await cluster["d1"].start(port)
    answer = await turn
    assert (answer.status, answer.headers["x-conserve-decoder"]) == (200, "d1")
    assert len(cluster["d0"].turns) == 2


async def test_no_decoder_is_a_503_that_says_so(cluster: Cluster) -> None:
    await cluster["d0"].stop()
    await cluster["d1"].stop()
    await cluster.until(lambda: cluster.service.fleet.num_decoders_up == 0)
    answer = await cluster.chat("hello")
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "no_worker"
    assert answer.json()["error"]["message"].startswith("No worker that can decode takes turns")
    assert "retry-after" in answer.headers


async def test_no_prefiller_is_waited_for_and_then_a_503_that_says_so() -> None:
    async with a_cluster(queue_timeout_s=0.3) as cluster:
        await cluster.chat("hello", name="pinned")
        await cluster["p0"].stop()
        await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
        asked = asyncio.ensure_future(cluster.chat("hello"))
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 1)
        pinned = await cluster.chat("hello", "the answer", "more", name="pinned")
        assert pinned.status == 200
        (waiting,) = (await cluster.request("GET", "/v1/conversations/c")).json()["placements"]
        assert waiting["state"] == "queued"
        answer = await asked
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        error = answer.json()["error"]
        assert error["code"] == "no_worker"
        assert error["message"].startswith("No worker that can prefill takes turns")
        port = cluster.service.control_port
        metrics = (await cluster.request("GET", "/metrics", port)).body.decode()
        assert 'conserve_router_rejections_total{reason="no_prefiller"} 1.0' in metrics
        assert 'conserve_router_rejections_total{reason="queue_timeout"} 0.0' in metrics


async def test_full_queue_is_a_429() -> None:
    async with a_cluster(overload=Overload(max_phase_one_turns=0)) as small:
        await small["p0"].stop()
        await small.until(lambda: small.state_of("p0") is WorkerState.LOST)
        answer = await small.chat("hello")
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0


async def test_every_attempt_failing_is_a_502(cluster: Cluster) -> None:
    for name in ("d0", "d1"):
        cluster[name].faults.statuses += [500] * 9
    answer = await cluster.chat("hello")
    assert answer.status == 502
    assert answer.json()["error"]["code"] == "workers_failed"


async def test_broken_stream_ends_with_an_error_event_where_it_may_not_go_on() -> None:
    async with a_cluster(max_continuations=0) as cluster:
        cluster["d0"].faults.cut_after_events = 1
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": [], "stream": True})
        answer = await client.answer()
        assert answer.events[0]["choices"][0]["delta"]["content"] == "the"
        assert answer.events[-1]["error"]["code"] == "answer_broken_off"
        assert await client.is_closed()


async def test_decoder_lost_within_an_answer_that_is_not_streamed_is_not_seen(
    cluster: Cluster,
) -> None:
    cluster["d0"].answer = "y" * 50_000
    cluster["d0"].faults.split_bytes = 1_000
    asked = asyncio.ensure_future(cluster.chat("hello"))
    await cluster.until(lambda: cluster["d0"].num_written > 10_000)
    await cluster["d0"].stop()
    answer = await asked
    assert answer.status == 200
    assert answer.headers["x-conserve-decoder"] == "d1"
    assert answer.json()["choices"][0]["message"]["content"] == "the answer"


async def test_very_long_answer_is_passed_on_as_it_comes_and_not_completed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legs, "MAX_HELD_ANSWER_BYTES", 10_000)
    cluster["d0"].answer = "y" * 50_000
    cluster["d0"].faults.split_bytes = 20_000
    client = await cluster.connect()
    client.ask("/v1/chat/completions", {"messages": []})
    await client.head()
    await cluster["d0"].stop()
    got = await asyncio.wait_for(client.reader.read(), 5)
    assert len(got) < 50_000


async def test_killed_decoder_under_a_stream_is_told_at_once() -> None:
    async with a_cluster(max_continuations=0) as cluster:
        cluster["d0"].faults.event_delay_s = 5.0
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": [], "stream": True})
        await client.head()
        await cluster["d0"].stop()
        body, _ = await client._chunks()
        assert b"answer_broken_off" in body


@pytest.mark.parametrize("stream", [False, True])
async def test_client_leaving_aborts_on_both_workers(cluster: Cluster, stream: bool) -> None:
    cluster["p0"].faults.delay_s = 5.0
    client = await cluster.connect()
    client.ask("/v1/chat/completions", {"messages": [], "stream": stream})
    await cluster.until(lambda: bool(cluster["d0"].turns))
    client.close()
    await cluster.until(lambda: cluster["d0"].turns[0].was_aborted)
    await cluster.until(lambda: cluster["p0"].turns[0].was_aborted)
    assert cluster.service.door.metrics.turns[Outcome.CLIENT_LEFT] == 1
    assert cluster.service.door.executor.num_open_turns == 0


async def test_client_leaving_mid_stream_aborts_on_the_decoder(cluster: Cluster) -> None:
    cluster["d0"].faults.event_delay_s = 0.2
    client = await cluster.connect()
    client.ask("/v1/chat/completions", {"messages": [], "stream": True})
    await client.head()
    client.close()
    await cluster.until(lambda: cluster["d0"].turns[0].was_aborted)


async def test_client_leaving_while_its_turn_waits_is_noticed() -> None:
    async with a_cluster() as cluster:
        await cluster["p0"].stop()
        await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": []})
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 1)
        client.close()
        await cluster.until(lambda: cluster.service.door.executor.num_open_turns == 0)


async def test_stale_kept_alive_connection_is_not_the_clients_problem(cluster: Cluster) -> None:
    await cluster.chat("hello")
    cluster["d0"].faults.num_cuts_before_head = 1
    answer = await cluster.chat("hello", "the answer", "more")
    assert answer.status == 200
    assert len(cluster["p0"].turns) == 1


async def test_worker_that_closes_after_each_answer_is_served_by_new_connections(
    cluster: Cluster,
) -> None:
    cluster["d0"].faults.closes_after_answer = True
    for _ in range(3):
        assert (await cluster.chat("hello")).status == 200


async def test_slow_client_holds_back_the_worker_and_gets_everything() -> None:
    async with a_cluster() as cluster:
        cluster["d0"].answer = " ".join(["z" * 2000] * 2000)
        client = await cluster.connect()
        client.ask("/v1/chat/completions", {"messages": [], "stream": True})
        await client.head()
        await asyncio.sleep(0.3)
        body, is_whole = await client._chunks()
        assert is_whole
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"z" * 2000) == 2000


@pytest.mark.parametrize("asks_usage", [False, True])
async def test_client_leaving_after_the_last_event_has_its_answer(
    cluster: Cluster, asks_usage: bool
) -> None:
    cluster["d0"].faults.last_chunk_delay_s = 0.2
    client = await cluster.connect()
    options = {"stream_options": {"include_usage": True}} if asks_usage else {}
    client.ask("/v1/chat/completions", {"messages": [], "stream": True, **options})
    answer = await client.answer()
    client.close()
    assert answer.is_whole
    assert answer.events[-1] == "[DONE]"
    assert cluster.service.door.metrics.turns[Outcome.ANSWERED] == 1
    assert not cluster["d0"].turns[0].was_aborted
    await asyncio.sleep(0.3)
    before = cluster["d0"].num_connections
    await cluster.chat("hello", name="other")
    await cluster.chat("hello", name="yet another")
    assert cluster["d0"].num_connections == before


@replaces_a_part
async def test_abort_that_crosses_a_failure_stops_no_other_attempt(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, brain = cluster.service.door.executor, cluster.service.brain
    cluster["p0"].faults.delay_s = 5.0
    asked = asyncio.ensure_future(cluster.chat("hello"))
    await cluster.until(lambda: bool(cluster["p0"].turns and cluster["d0"].turns))
    await asyncio.sleep(0.02)
    cluster["p0"].faults.delay_s = 0.0
    (turn,) = executor._turns.values()
    told: list[Event] = []
    monkeypatch.setattr(brain, "tell", told.append)  # on its way, as from another process
    turn.failed(FailureCause.DECODER_FAILED, "lost")
    executor.carry_out(AbortTurn(turn_id=turn.turn_id))
    monkeypatch.undo()
    (failed,) = told
    brain.tell(failed)
    assert (await asked).status == 200
    assert cluster.service.door.metrics.num_retries == 1


@replaces_a_part
async def test_fault_in_one_command_does_not_drop_those_after_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor = cluster.service.door.executor
    aborted: list[TurnId] = []

    def abort(command: AbortTurn) -> None:
        aborted.append(command.turn_id)
        if len(aborted) == 1:
            raise ZeroDivisionError
        carry_out(command)

    carry_out = executor._abort
    cluster["p0"].faults.delay_s = 5.0
    turns = [asyncio.ensure_future(cluster.chat("hello", name=f"{n}")) for n in range(3)]
    await cluster.until(lambda: executor.num_open_turns == 3)
    await cluster.until(lambda: len(cluster["p0"].turns) == 3)
    await asyncio.sleep(0.05)  # now all three are in their delay
    cluster["p0"].faults.delay_s = 0.0
    monkeypatch.setattr(executor, "_abort", abort)
    await cluster.request("POST", "/admin/workers/p0/lost", cluster.service.control_port)
    answers = await asyncio.gather(*turns)
    assert len(aborted) == 3
    assert sorted(answer.status for answer in answers) == [200, 200, 500]
    assert "ZeroDivisionError" in caplog.text
    assert executor.num_open_turns == 0
