"""Servers beside each other are measured on all of them, one more each time."""

import random
from contextlib import AsyncExitStack

import pytest

from bench.sim_fidelity import sharing
from conserve_sglang.core.worker import Role
from conserve_sglang.profiler.talk import Talker
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

QUICK = Costs(prefill_s=0.002, per_new_s=1e-6, step_s=0.0005, per_kv_s=0.0)


def talker(worker: FakeMeasuredWorker, role: Role) -> Talker:
    return Talker(worker.url, role, num_token_ids=512, rng=random.Random(1))


async def test_each_measurement_has_one_more_server_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "NUM_REPEATS", 2)
    workers = [FakeMeasuredWorker(mode, QUICK) for mode in ("decode", "decode", "prefill")]
    roles = (Role.DECODE, Role.DECODE, Role.PREFILL)
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker.serve())
        found = await sharing._measure([talker(*pair) for pair in zip(workers, roles, strict=True)])
    assert found.prefill == (1.0, 1.0, 1.0)  # by stamps, which these servers' load does not move
    assert len(found.decode) == 3
    assert list(found.decode) == sorted(found.decode)
    assert found.decode[0] == 1.0
    assert workers[0].num_requests == 3 * 2
    assert all(worker.num_requests > 0 for worker in workers)


async def test_servers_without_stamps_cannot_be_measured() -> None:
    async with FakeMeasuredWorker("decode", QUICK).serve() as worker:
        worker.has_stamps = False
        with pytest.raises(SystemExit, match="enable-metrics"):
            await sharing._measure([talker(worker, Role.DECODE)])
