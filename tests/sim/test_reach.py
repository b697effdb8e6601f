"""What a simulation does beyond a profile's points is counted step by step."""

from dataclasses import replace

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.profiles.published import a40_qwen3_0_6b
from conserve_sglang.sim import A40_QWEN3_0_6B, ConversationRecord, Simulation, perf_model_of
from conserve_sglang.sim.reach import Reach, beyond_points
from tests.sim.builders import a_deployment, a_plan

KNOWN = replace(A40_QWEN3_0_6B, most_batch=2, most_kv_tokens=1000, most_append_tokens=5000)


class Worker:
    def __init__(self) -> None:
        self.reach = Reach(KNOWN, "d")


def test_steps_beyond_are_those_that_spelling_them_out_finds() -> None:
    reach = Reach(KNOWN, "d")
    kv_beyond = batch_beyond = num = most = 0
    for batch, kv_tokens, steps in [(1, 990, 20), (2, 990, 3), (2, 1000, 1), (3, 10, 7), (1, 1, 9)]:
        reach.decoded(batch, kv_tokens, steps)
        held = [kv_tokens + batch * step for step in range(steps)]
        kv_beyond += sum(tokens > 1000 for tokens in held)
        batch_beyond += steps if batch > 2 else 0
        num, most = num + steps, max(most, *held)
    batches, tokens = reach.beyond()
    assert (batches.what, batches.reached, batches.known) == ("decode batch", 3, 2)
    assert batches.share == pytest.approx(batch_beyond / num)
    assert (tokens.reached, tokens.known) == (most, 1000)
    assert tokens.share == pytest.approx(kv_beyond / num)
    assert "decode batch up to 3, the points of profile" in batches.text
    assert f"({most / 1000:.3g} x as far" in tokens.text


def test_appends_are_known_as_far_as_appends_have_points() -> None:
    reach = Reach(KNOWN, "d")
    reach.prefilled(0, 9000)
    reach.prefilled(4900, 5000)
    assert reach.beyond() == ()
    reach.prefilled(4900, 5001)
    (appends,) = reach.beyond()
    assert (appends.what, appends.reached, appends.share) == ("context of an append", 5001, 0.5)


def test_workers_of_a_tier_are_told_together() -> None:
    one, two = Worker(), Worker()
    one.reach.decoded(3, 3, 10)
    two.reach.decoded(5, 5, 10)
    two.reach.decoded(1, 1, 20)
    (both,) = beyond_points([one, two])
    assert (both.reached, both.share) == (5, 0.5)


def test_a_profile_says_how_far_its_points_go() -> None:
    profile = a40_qwen3_0_6b(300)
    perf = perf_model_of(profile)
    assert perf.most_batch == max(point.batch for point in profile.decode)
    assert perf.most_kv_tokens == max(point.kv_tokens for point in profile.decode)
    assert perf.most_append_tokens == perf.prefill_tokens[-1]
    bare = replace(profile, prefill=tuple(p for p in profile.prefill if not p.cached_tokens))
    reach = Reach(perf_model_of(bare), "d")
    reach.prefilled(10, 20)
    (nothing,) = reach.beyond()
    assert "tell nothing of it (100.0% of the append prefills)" in nothing.text


def test_a_simulation_tells_what_its_workers_reached() -> None:
    deployment = a_deployment("p0", "d0")
    workers = tuple(
        replace(one, perf=replace(one.perf, most_batch=1)) for one in deployment.workers
    )
    records: list[ConversationRecord] = []
    simulation = Simulation(replace(deployment, workers=workers), records.append)
    simulation.run([a_plan(name, (1000, 300), (100, 50)) for name in "abc"])
    (batches,) = beyond_points(simulation.workers.values())
    decoder = next(one for one in deployment.workers if one.spec.role is Role.DECODE)
    assert batches.tier == decoder.spec.tier
    assert (batches.what, batches.reached, batches.known) == ("decode batch", 3, 1)
    alone = Simulation(deployment, records.append)
    alone.run([a_plan("a", (1000, 300))])
    assert beyond_points(alone.workers.values()) == ()
