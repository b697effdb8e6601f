"""Measuring real servers: what a profile says of them, and the fake worker held to the real one."""

import random
from typing import Any

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.profiler.measure_decode import DecodeMeasure
from conserve_sglang.profiler.measure_prefill import PrefillMeasure
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.stand import attached_talkers
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Talker
from conserve_sglang.tiermap import load_tier_map
from tests.profiler.fake_worker import FakeMeasuredWorker
from tests.sglang.cluster import ROOT, Cluster

pytestmark = pytest.mark.sglang

SHORT = StopRule(most_seconds=3.0, most_repeats=8)
CHUNK = 512


async def talkers(cluster: Cluster, *names: str) -> dict[Role, Talker]:
    tier_map = load_tier_map(ROOT / "tier_maps" / "cpu_local.yaml")
    urls = [cluster.url(name) for name in names]
    return await attached_talkers(urls, tier_map, random.Random(5))


async def test_a_longer_prompt_takes_longer_on_a_prefiller_alone(cluster: Cluster) -> None:
    """Through SGLang's fake peer: no decoder has a part in it."""
    prefiller = (await talkers(cluster, "p0"))[Role.PREFILL]
    measure = PrefillMeasure(prefiller, CHUNK, None, runs_behind=False)
    short = await measure.measure(Point(sweep="prefill", new_tokens=16), SHORT)
    long = await measure.measure(Point(sweep="prefill", new_tokens=2048), SHORT)
    prefiller.close()
    assert short.failure is None
    assert long.failure is None
    assert (long.seconds or 0) > 2 * (short.seconds or 9)


async def test_a_decoder_prefills_appends_of_what_it_has(cluster: Cluster) -> None:
    """By the mark of a local turn, and much faster than the whole prompt."""
    decoder = (await talkers(cluster, "d0"))[Role.DECODE]
    measure = PrefillMeasure(decoder, CHUNK, None, runs_behind=False)
    append = await measure.measure(Point(sweep="append", new_tokens=16, cached_tokens=2048), SHORT)
    whole = await measure.measure(Point(sweep="prefill", new_tokens=2064), SHORT)
    decoder.close()
    assert (append.seconds or 9) < (whole.seconds or 0)


async def test_a_decode_step_of_a_real_batch(cluster: Cluster) -> None:
    decoder = (await talkers(cluster, "d1"))[Role.DECODE]
    point = Point(sweep="decode", batch=4, kv_tokens=4 * 128)
    found = await DecodeMeasure(decoder, None).measure(point, SHORT)
    decoder.close()
    assert found.failure is None
    assert 0 < (found.seconds or 0) < 1
    assert (found.kv_tokens or 0) > 4 * 128


@pytest.fixture
def told_by_fake() -> FakeMeasuredWorker:
    worker = FakeMeasuredWorker()
    worker.has_stamps = False  # the tests' cluster runs without --enable-metrics
    return worker


async def test_the_fake_worker_answers_as_the_real_one_does(
    cluster: Cluster, told_by_fake: FakeMeasuredWorker
) -> None:
    """In what the profiler reads: token counts, what is cached, ticks, and /server_info."""
    async with told_by_fake.serve():
        real = (await talkers(cluster, "ref"))[Role.MIXED]
        fake = Talker(told_by_fake.url, Role.MIXED, num_token_ids=512, rng=random.Random(5))
        for asked in (real, fake):
            prompt = asked.prompt(64)
            first = await asked.generate(prompt, 3)
            again = await asked.stream([*prompt, *asked.prompt(8)], 5)
            info: dict[str, Any] = await asked.info()
            facts = await asked.facts()
            asked.close()
            assert (first.meta.prompt_tokens, first.meta.completion_tokens) == (64, 3)
            assert first.meta.prefill_finished_time is None
            assert (again.meta.prompt_tokens, again.meta.completion_tokens) == (72, 5)
            assert again.meta.cached_tokens >= 60
            assert again.ticks[-1][1] == 5
            assert [count for _, count in again.ticks] == sorted({n for _, n in again.ticks})
            assert info["chunked_prefill_size"] == CHUNK
            assert info["dtype"] == "float32"
            assert info["disaggregation_mode"] == "null"
            assert facts.kv_capacity_tokens == 65_536
            assert facts.version
