"""What can be measured on which workers."""

import random
from pathlib import Path

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.profiler.point import Sweep
from conserve_sglang.profiler.stand import attached_talkers, look_at
from conserve_sglang.tiermap import load_tier_map
from tests.profiler.fake_worker import FakeMeasuredWorker

CPU = load_tier_map(Path(__file__).parents[2] / "tier_maps" / "cpu_local.yaml")
ON_ONE = {Sweep.PREFILL, Sweep.APPEND, Sweep.DECODE, Sweep.REQUEST}


@pytest.mark.parametrize(
    ("is_ours", "found"),
    [(True, ON_ONE | {Sweep.TRANSFER, Sweep.HANDOFF}), (False, ON_ONE | {Sweep.HANDOFF})],
)
async def test_a_pair_that_may_be_others_too_is_not_emptied(
    *, is_ours: bool, found: set[Sweep]
) -> None:
    prefiller, decoder = FakeMeasuredWorker("prefill"), FakeMeasuredWorker("decode")
    async with prefiller.serve(), decoder.serve():
        talkers = await attached_talkers([prefiller.url, decoder.url], CPU, random.Random(1))
        stand = await look_at(CPU, talkers, is_ours=is_ours, max_batch=4)
        assert stand.measures(None).keys() == found
        stand.close()
    assert talkers[Role.PREFILL].bootstrap == ("127.0.0.1", 8998)
    assert talkers[Role.DECODE].bootstrap is None


async def test_one_worker_hands_nothing_over() -> None:
    async with FakeMeasuredWorker().serve() as worker:
        talkers = await attached_talkers([worker.url], CPU, random.Random(1))
        stand = await look_at(CPU, talkers, is_ours=True, max_batch=4)
        assert stand.measures(None).keys() == ON_ONE
        stand.close()
