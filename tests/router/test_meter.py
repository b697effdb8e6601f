"""What is measured of turns, seen from the metrics of a running router."""

import asyncio
import time
from typing import Any

import pytest

from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.telemetry.metrics import Outcome, RecentLatencies
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.fakes.router_family import a_family


def histogram(cluster: Cluster, name: str, role: str) -> tuple[int, float]:
    """Count and sum over all tiers."""
    found = [
        getattr(timings, name)
        for (_, prefilled_by), timings in cluster.service.door.metrics.timings.items()
        if prefilled_by == role
    ]
    return sum(sum(each.counts) for each in found), sum(each.sum_s for each in found)


async def test_tbt_is_the_mean_gap_of_streamed_turns_only() -> None:
    async with a_cluster() as cluster:
        for name in ("d0", "d1"):
            cluster[name].answer = "one two three four"
            cluster[name].faults.event_delay_s = 0.05
        await cluster.chat("hi", stream=True)
        count, total = histogram(cluster, "tbt", "prefill")
        assert count == 1
        num_tokens = len("one two three four")
        assert 0.14 / (num_tokens - 1) < total < 2.0 / (num_tokens - 1)
        await cluster.chat("hi", "one two three four", "more", stream=False)
        assert histogram(cluster, "tbt", "decode") == (0, 0.0)
        assert histogram(cluster, "ttft", "decode")[0] == 1
        assert histogram(cluster, "e2e", "decode")[0] == 1


@pytest.mark.parametrize(
    ("stream", "fields"),
    [(True, {}), (True, {"stream_options": {"include_usage": True}}), (False, {})],
)
async def test_ttfet_waits_for_the_answer_that_calls_no_tool(
    stream: bool, fields: dict[str, Any]
) -> None:
    async with a_cluster(modes={"p0": "prefill", "d0": "decode"}) as cluster:
        worker = cluster["d0"]
        worker.finish_reason = "tool_calls"
        await cluster.chat("hi", stream=stream, **fields)
        await cluster.chat("hi", "the answer", "tool says", stream=stream, **fields)
        assert histogram(cluster, "ttfet", "prefill") == (0, 0.0)
        worker.finish_reason = "stop"
        worker.faults.delay_s = 0.2
        await cluster.chat("hi", "a", "b", "c", "d", stream=stream, **fields)
        worker.faults.delay_s = 0.0
        count, total = histogram(cluster, "ttfet", "decode")
        assert count == 1
        assert total > 0.2
        ttft = histogram(cluster, "ttft", "decode")[1] + histogram(cluster, "ttft", "prefill")[1]
        assert total > ttft * 0.9  # it counts from the arrival of turn 1
        await cluster.chat("hi", "a", "b", "c", "d", "e", "f", stream=stream, **fields)
        assert histogram(cluster, "ttfet", "decode")[0] == 1


async def test_the_power_controller_gets_each_latency_as_it_was() -> None:
    async with a_cluster() as cluster:
        metrics = cluster.service.door.metrics
        assert metrics.recent is None  # this tier map has no budget
        metrics.recent = RecentLatencies()
        await cluster.chat("hi", stream=True)
        (tbt,), (ttfet,) = metrics.recent.tbt, metrics.recent.ttfet
        assert tbt[2] == pytest.approx(histogram(cluster, "tbt", "prefill")[1])
        assert ttfet[2] == pytest.approx(histogram(cluster, "ttfet", "prefill")[1])
        assert ttfet[0] < tbt[0] < tbt[1] <= ttfet[1]


async def test_kv_moved_is_the_prompt_less_what_the_decoder_had() -> None:
    async with a_cluster(
        modes={"p0": "prefill", "d0": "decode"}, params={"max_local_append_tokens": 50}
    ) as cluster:
        metrics = cluster.service.door.metrics
        first = (await cluster.chat("a" * 300)).json()["usage"]
        assert metrics.kv_transferred_tokens == first["prompt_tokens"]
        resident = first["total_tokens"]
        second = (await cluster.chat("a" * 300, "the answer", "b" * 600)).json()["usage"]
        assert metrics.num_kv_transfers == 2
        moved = second["prompt_tokens"] - resident
        assert metrics.kv_transferred_tokens == first["prompt_tokens"] + moved
        assert metrics.kv_transferred_bytes == 0  # the worker does not say how large a token is


async def test_bytes_are_counted_where_the_worker_tells_its_pool() -> None:
    async with a_cluster(modes={"p0": "prefill", "d0": "decode"}, is_met=False) as cluster:
        cluster["d0"].kv_gb = 0.5
        await cluster.until_met()
        usage = (await cluster.chat("a" * 300)).json()["usage"]
        per_token = 0.5 * 2**30 / cluster["d0"].capacity_tokens
        moved = int(usage["prompt_tokens"] * per_token)
        assert cluster.service.door.metrics.kv_transferred_bytes == moved


async def test_retries_and_tenants_are_counted() -> None:
    async with a_cluster() as cluster:
        cluster["p0"].faults.statuses = [500]
        await cluster.chat("hi")
        metrics = cluster.service.door.metrics
        assert metrics.num_retries == 1
        assert metrics.tenants["default"].turns == 1
        assert metrics.tenants["default"].output_tokens == len("the answer")


async def test_ttfet_is_not_told_where_a_turn_went_to_another_replica() -> None:
    async with a_cluster(modes={"p0": "prefill", "d0": "decode"}) as cluster:
        cluster["d0"].finish_reason = "tool_calls"
        await cluster.chat("hi")
        conversation = cluster.service.brain.conversations.find(DEFAULT_TENANT.tenant_id, b"c")
        assert conversation is not None
        conversation.last_turn_seen = 0  # as if turn 1 had been at the other
        cluster["d0"].finish_reason = "stop"
        await cluster.chat("hi", "the answer", "tool says")
        assert histogram(cluster, "ttfet", "decode") == (0, 0.0)


async def test_every_conversation_has_its_ttfet_whichever_process_its_turns_come_to() -> None:
    said = ("hi", "the answer", "tool says", "the answer", "tool says", "the answer", "thanks")
    names = [f"c{number}" for number in range(12)]
    async with a_family(num_fronts=3) as family:

        async def play(finish_reason: str, *lengths: int) -> None:
            for worker in ("d0", "d1"):
                family[worker].finish_reason = finish_reason
            for length in lengths:
                for name in names:  # each request on a connection of its own
                    await family.chat(*said[:length], name=name)

        await play("tool_calls", 1)
        first_ended_at_s = time.monotonic()
        await play("tool_calls", 3)
        await asyncio.sleep(0.1)
        third_began_at_s = time.monotonic()
        await play("stop", 5, 7)
        all_told = 4 * len(names)
        await family.until(
            lambda: family.many.metrics().turns[Outcome.ANSWERED] == all_told
        )  # what fronts count is told every quarter of a second
        ttfets = [each.ttfet for each in family.many.metrics().timings.values()]
        assert sum(sum(each.counts) for each in ttfets) == len(names)
        least_s = third_began_at_s - first_ended_at_s
        assert sum(each.sum_s for each in ttfets) > least_s * len(names)
        counted = [seat.metrics for seat in family.many.hub.seats()]
        assert sum(bool(each and each["turns"]["answered"]) for each in counted) > 1
