"""What is measured on a worker whose costs are known is what it costs."""

import random
import statistics

import pytest

from conserve_sglang.core.errors import NotCapable
from conserve_sglang.core.worker import Role
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading
from conserve_sglang.profiler.measure_decode import DecodeMeasure
from conserve_sglang.profiler.measure_front import (
    FRONT_NEEDS_STAMPS,
    NUM_WARM_UP,
    HandoffMeasure,
    RequestMeasure,
)
from conserve_sglang.profiler.measure_prefill import PrefillMeasure
from conserve_sglang.profiler.measure_transfer import NEEDS_STAMPS, TransferMeasure
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.power import PowerTrack
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Talker
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

RULE = StopRule(most_seconds=1.5)
CHUNK = 512
NOISE_S = 0.1  # of the client's clock, on a machine that does other things too


def talker(worker: FakeMeasuredWorker, role: Role = Role.MIXED) -> Talker:
    return Talker(
        worker.url,
        role,
        num_token_ids=30_000,
        rng=random.Random(1),
        bootstrap=("127.0.0.1", 1) if role is Role.PREFILL else None,
    )


def took(worker: FakeMeasuredWorker, batch: int) -> float:
    """The median of the times between steps of a batch, as the worker saw them."""
    return statistics.median(seconds for number, seconds in worker.steps if number == batch)


def prefill(new: int, cached: int = 0, batch: int = 1) -> Point:
    sweep = "append" if cached else "prefill"
    return Point(sweep=sweep, new_tokens=new, cached_tokens=cached, batch=batch)


async def test_prefill_is_timed_by_the_scheduler() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        found = await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(1024), RULE)
    assert found.seconds == pytest.approx(worker.costs.prefill(1024, 0), rel=1e-3)
    assert found.rel_ci == pytest.approx(0, abs=1e-3)
    assert (found.clock, found.watts) == ("scheduler", None)
    assert found.num_repeats >= 6


async def test_without_stamps_it_is_the_clients_clock_and_says_so() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        worker.has_stamps = False
        found = await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(1024), RULE)
    assert found.clock == "client"
    assert (found.seconds or 0) > worker.costs.prefill(1024, 0)


async def test_an_append_pays_for_its_new_tokens_and_little_for_those_cached() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        found = await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(64, 2048), RULE)
    assert found.seconds == pytest.approx(worker.costs.prefill(64, 2048), rel=1e-3)


async def test_a_prefix_that_is_always_gone_is_no_append() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        worker._cached = lambda prompt: 0  # type: ignore[method-assign]
        found = await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(64, 2048), RULE)
    assert found.seconds is None
    assert found.failure is not None


async def test_a_batch_is_timed_from_when_the_device_is_free() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        found = await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(64, 0, 4), RULE)
    assert found.seconds == pytest.approx(4 * worker.costs.prefill(64, 0), rel=1e-3)


async def test_a_decode_step_is_that_of_the_whole_batch() -> None:
    point = Point(sweep="decode", batch=8, kv_tokens=8 * 1024)
    costs = Costs(per_kv_s=1e-6, prefill_s=0.001, per_new_s=1e-6)
    async with FakeMeasuredWorker(costs=costs).serve() as worker:
        found = await DecodeMeasure(talker(worker), None).measure(point, RULE)
    assert found.kv_tokens is not None
    assert 8 * 1024 < found.kv_tokens < 8 * (1024 + 200)
    assert found.seconds == pytest.approx(took(worker, 8), rel=0.6)
    assert (found.seconds or 0) >= costs.step(8 * 1024)


async def test_a_decode_step_is_found_without_stamps_too() -> None:
    point = Point(sweep="decode", batch=4, kv_tokens=4 * 64)
    costs = Costs(step_s=0.006, per_new_s=1e-6)
    async with FakeMeasuredWorker(costs=costs).serve() as worker:
        worker.has_stamps = False
        found = await DecodeMeasure(talker(worker), None).measure(point, RULE)
    assert found.clock == "client"
    assert found.seconds == pytest.approx(took(worker, 4), rel=0.6)


async def test_a_transfer_is_told_from_its_prefill_and_from_the_answers_way() -> None:
    costs = Costs(transfer_s=0.01)
    prefiller, decoder = FakeMeasuredWorker("prefill", costs), FakeMeasuredWorker("decode", costs)
    async with prefiller.serve(), decoder.serve():
        measure = TransferMeasure(talker(prefiller, Role.PREFILL), talker(decoder, Role.DECODE))
        found = await measure.measure(Point(sweep="transfer", new_tokens=2048), RULE)
    assert found.seconds == pytest.approx(costs.transfer(2048), rel=1e-3)
    assert decoder.num_flushes >= found.num_repeats
    assert prefiller.num_flushes == 0


async def test_a_transfer_needs_stamps() -> None:
    prefiller, decoder = FakeMeasuredWorker("prefill"), FakeMeasuredWorker("decode")
    prefiller.has_stamps = False
    async with prefiller.serve(), decoder.serve():
        measure = TransferMeasure(talker(prefiller, Role.PREFILL), talker(decoder, Role.DECODE))
        found = await measure.measure(Point(sweep="transfer", new_tokens=64), RULE)
    assert found.failure == NEEDS_STAMPS


async def test_a_request_takes_what_its_prefill_leaves_of_its_first_token() -> None:
    costs = Costs(way_in_s=0.05, per_new_s=20e-6)
    async with FakeMeasuredWorker("decode", costs).serve() as worker:
        measure = RequestMeasure(talker(worker, Role.DECODE))
        found = await measure.measure(Point(sweep="request", new_tokens=1024), RULE)
    assert found.num_repeats == worker.num_requests - NUM_WARM_UP
    assert 0.05 <= (found.seconds or 0) < 0.05 + NOISE_S


async def test_a_handoff_is_what_its_prefill_leaves_of_the_first_token_through_a_pair() -> None:
    costs = Costs(way_in_s=0.01, meeting_s=0.05, transfer_s=0.02)
    prefiller, decoder = FakeMeasuredWorker("prefill", costs), FakeMeasuredWorker("decode", costs)
    async with prefiller.serve(), decoder.serve():
        measure = HandoffMeasure(talker(prefiller, Role.PREFILL), talker(decoder, Role.DECODE))
        found = await measure.measure(Point(sweep="handoff", new_tokens=256), RULE)
    takes_s = costs.way_in_s + costs.meeting_s + costs.transfer(256)
    assert takes_s <= (found.seconds or 0) < takes_s + NOISE_S
    assert prefiller.num_requests == decoder.num_requests == found.num_repeats + NUM_WARM_UP
    assert decoder.num_flushes == 0


async def test_what_comes_beyond_a_prefill_needs_stamps() -> None:
    prefiller, decoder = FakeMeasuredWorker("prefill"), FakeMeasuredWorker("decode")
    prefiller.has_stamps = decoder.has_stamps = False
    async with prefiller.serve(), decoder.serve():
        pair = (talker(prefiller, Role.PREFILL), talker(decoder, Role.DECODE))
        handoff = await HandoffMeasure(*pair).measure(Point(sweep="handoff", new_tokens=64), RULE)
        request = await RequestMeasure(pair[1]).measure(Point(sweep="request", new_tokens=64), RULE)
    assert handoff.failure == request.failure == FRONT_NEEDS_STAMPS


async def test_what_a_worker_refuses_says_why() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        worker.refuses_longer_than = 100
        with pytest.raises(NotCapable, match="too long"):
            await PrefillMeasure(talker(worker), CHUNK, None).measure(prefill(1024), RULE)


async def test_watts_are_those_of_the_busy_worker() -> None:
    """The meter draws 100 W, and 300 W while a request is inside the worker."""
    async with FakeMeasuredWorker().serve() as worker:
        meter = _BusyMeter(worker)
        with PowerTrack(meter, ["gpu"]).running() as power:
            found = await PrefillMeasure(talker(worker), CHUNK, power).measure(prefill(1024), RULE)
            step = await DecodeMeasure(talker(worker), power).measure(
                Point(sweep="decode", batch=4, kv_tokens=256), RULE
            )
    assert found.watts == pytest.approx(300, rel=0.2)
    assert step.watts == pytest.approx(300, rel=0.2)
    assert power.origin is Origin.MEASURED


class _BusyMeter:
    """Integrates two powers by what the fake worker is doing when it is read."""

    def __init__(self, worker: FakeMeasuredWorker) -> None:
        self._worker = worker
        self._joules = 0.0
        self._at_s: float | None = None

    def devices(self) -> tuple[Device, ...]:
        return (Device(device_id="gpu", kind=Kind.GPU, name="fake"),)

    def read(self) -> dict[str, Reading]:
        import time

        now = time.monotonic()
        if self._at_s is not None:
            self._joules += (now - self._at_s) * (300 if self._worker.is_busy else 100)
        self._at_s = now
        reading = Reading(
            device_id="gpu",
            at_s=now,
            joules=self._joules,
            watts=None,
            origin=Origin.MEASURED,
            source="fake",
        )
        return {"gpu": reading}

    def close(self) -> None:
        pass
