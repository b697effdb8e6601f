"""What is counted, measured and logged of turns that clients send by themselves."""

import asyncio

import pytest

from conserve_sglang.dispatch import FailureCause
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.router.access_log import AccessLog
from conserve_sglang.router.worker import WorkerState
from conserve_sglang.telemetry.logs import ACCESS_LOGGER
from conserve_sglang.telemetry.metrics import Outcome
from tests.fakes.placing import CHAT, Placing


async def test_placed_turns_are_counted_as_any_others(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    await placing.turn("c", "hello")
    assert metrics.turns[Outcome.ANSWERED] == 1
    assert metrics.placements[PlacementReason.FIRST_TURN] == metrics.num_kv_transfers == 1
    assert (metrics.prompt_tokens, metrics.output_tokens) == (len("hello"), len("the answer"))
    assert metrics.kv_transferred_tokens == len("hello")
    place = await placing.place("c", 30)
    await placing.report(place, "failed", cause="decoder_failed")
    await placing.report(place, "abandoned")
    assert metrics.failures[FailureCause.DECODER_FAILED] == metrics.num_retries == 1
    assert metrics.turns[Outcome.CLIENT_LEFT] == 1
    await placing.post("/v1/place", {"input_tokens": 10_000_000})
    assert metrics.turns[Outcome.REJECTED] == 1
    assert metrics.rejections[RejectReason.TOO_LONG] == 1
    tenant = metrics.tenants["trusted"]
    assert (tenant.turns, tenant.rejections, tenant.prompt_tokens) == (3, 1, len("hello"))
    assert all(not sum(each.ttft.counts) for each in metrics.timings.values())  # nobody said


async def test_place_that_needs_a_worker_that_is_not_there_is_refused_as_that(
    placing: Placing,
) -> None:
    cluster = placing.cluster
    await cluster["p0"].stop()
    await cluster.until(lambda: cluster.state_of("p0") is WorkerState.LOST)
    asked = asyncio.ensure_future(placing.post("/v1/place", {"input_tokens": 5}))
    dispatcher = cluster.service.brain.dispatcher
    await cluster.until(lambda: dispatcher.num_queued == 1)
    answer = await asked
    assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")
    assert "can prefill" in answer.json()["error"]["message"]
    rejections = cluster.service.metrics().rejections
    assert rejections[RejectReason.NO_PREFILLER] == 1


async def test_turns_that_nobody_ends_are_counted(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    place, _ = await placing.turn("c", "hello")
    await placing.place("c", 30)
    service = placing.cluster.service
    worker = next(w for w in service.fleet.workers() if w.worker_id == place["decoder"]["id"])
    service.fleet.lose(worker, "told so")
    assert metrics.turns[Outcome.BROKEN_OFF] == 1


async def test_latencies_are_those_that_the_client_reports(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    place = await placing.place("c", 30)
    await placing.report(
        place, "done", prompt_tokens=30, output_tokens=11, first_token_s=0.5, total_s=2.5,
        has_called_tools=True,
    )  # fmt: skip
    (timings,) = metrics.timings.values()
    assert sum(timings.ttft.counts) == 1
    assert timings.ttft.sum_s == pytest.approx(0.5)
    assert timings.e2e.sum_s == pytest.approx(2.5)
    assert timings.tbt.sum_s == pytest.approx(2.0 / 10)
    assert sum(timings.ttfet.counts) == 0
    place = await placing.place("c", 60)
    await placing.report(place, "first_token", first_token_s=0.25)
    await placing.report(place, "done", prompt_tokens=60, has_called_tools=False)
    ttfets = [each.ttfet for each in metrics.timings.values() if sum(each.ttfet.counts)]
    assert [sum(each.counts) for each in ttfets] == [1]
    assert 0.25 < ttfets[0].sum_s < 30  # from the arrival of turn 1


async def test_ttfet_is_left_out_where_no_client_said_when_it_was(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    await placing.turn("c", "hello")
    await placing.post(
        CHAT, {"messages": [{"role": "user", "content": "hello"}]}, **{"x-conversation-id": "c"}
    )
    assert all(not sum(each.ttfet.counts) for each in metrics.timings.values())


async def test_access_log_has_placed_turns(
    placing: Placing, caplog: pytest.LogCaptureFixture
) -> None:
    heard = AccessLog()
    placing.cluster.service.door.executor.meter.listeners = (heard,)
    with caplog.at_level("INFO", logger=ACCESS_LOGGER):
        place, _ = await placing.turn("c", "hello")
    (record,) = (each for each in caplog.records if each.name == ACCESS_LOGGER)
    said = record.getMessage()
    assert f"decoder={place['decoder']['id']}" in said
    assert "outcome=answered" in said
    assert "first_byte_s" not in said


async def test_a_turns_id_says_nothing_of_others(placing: Placing) -> None:
    ids = [(await placing.place(name, 5))["turn"] for name in ("a", "b", "c")]
    assert all(len(bytes.fromhex(each)) == 16 for each in ids)
    assert len({each[:8] for each in ids}) == 3
    for near in (ids[0].upper(), f" {ids[0]}", f"0x{ids[0]}", ids[0][:-1], "-1"):
        answer = await placing.post("/v1/place/report", {"turn": near, "event": "done"})
        assert answer.status == 404


async def test_one_request_reports_the_last_turn_and_places_the_next(placing: Placing) -> None:
    metrics = placing.cluster.service.metrics()
    first = await placing.place("c", 30)
    last = {"turn": first["turn"], "event": "done", "prompt_tokens": 30, "output_tokens": 4}
    second = await placing.place("c", 40, last=last)
    assert (second["reason"], second["last_known"]) == ("pinned", True)
    assert metrics.turns[Outcome.ANSWERED] == 1
    third = await placing.place("c", 50, last=last)
    assert third["last_known"] is False
    assert "last_known" not in first
    assert len(placing.cluster.service.placements) == 2
    failed = await placing.post(
        "/v1/place", {"input_tokens": 5, "last": {**last, "event": "failed"}}
    )
    assert failed.status == 400
