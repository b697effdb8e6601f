"""The first handoff of a pair is measured after each start, and told apart from later ones."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.worker import Role
from conserve_sglang.profiler import run as run_module
from conserve_sglang.profiler.measure_first import NUM_LATER, first_handoff_s
from conserve_sglang.profiler.options import Event, ProfileOptions
from conserve_sglang.profiler.point import Sweep
from conserve_sglang.profiler.run import run_profile
from conserve_sglang.profiler.stand import attached_talkers, look_at
from conserve_sglang.profiler.talk import Talker
from conserve_sglang.profiles import load_profile
from conserve_sglang.tiermap import load_tier_map
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

CPU = load_tier_map(Path(__file__).parents[2] / "tier_maps" / "cpu_local.yaml")
FIRST_S = 0.3
COSTS = Costs(first_meeting_s=FIRST_S, cold_s=0.4, prefill_s=0.001, per_new_s=1e-7, step_s=0.001)
NOISE_S = 0.1  # of the client's clock, on a machine that does other things too


@asynccontextmanager
async def a_pair(costs: Costs = COSTS) -> AsyncIterator[list[FakeMeasuredWorker]]:
    prefiller, decoder = FakeMeasuredWorker("prefill", costs), FakeMeasuredWorker("decode", costs)
    async with prefiller.serve(), decoder.serve():
        yield [prefiller, decoder]


def talkers(pair: Sequence[FakeMeasuredWorker]) -> dict[Role, Talker]:
    rng, roles = random.Random(1), (Role.PREFILL, Role.DECODE)
    return {
        role: Talker(
            worker.url,
            role,
            num_token_ids=30_000,
            rng=rng,
            bootstrap=("127.0.0.1", 1) if role is Role.PREFILL else None,
        )
        for worker, role in zip(pair, roles, strict=True)
    }


async def test_it_is_what_later_ones_and_cold_servers_do_not_take() -> None:
    async with a_pair() as pair:
        two = talkers(pair)
        first_s = await first_handoff_s(two[Role.PREFILL], two[Role.DECODE])
        again_s = await first_handoff_s(two[Role.PREFILL], two[Role.DECODE])
    assert first_s == pytest.approx(FIRST_S, abs=NOISE_S)
    assert again_s == pytest.approx(0.0, abs=NOISE_S)
    assert (again_s or 0.0) >= 0.0


async def test_a_pair_that_may_have_met_tells_nothing() -> None:
    async with a_pair() as pair:
        given = await attached_talkers([each.url for each in pair], CPU, random.Random(1))
        stand = await look_at(CPU, given, is_ours=False, max_batch=4)
        assert await stand.first_handoff_s() is None
        alone = replace(stand, is_ours=True, talkers={Role.DECODE: given[Role.DECODE]})
        assert await alone.first_handoff_s() is None
        stand.close()
    assert pair[0].num_requests == pair[1].num_requests == 0


class Starts:
    """Stands in for the launcher: another pair at each start, with another first handoff."""

    def __init__(self, *firsts_s: float) -> None:
        self._coming, self.num = list(firsts_s), 0
        self._pair: list[FakeMeasuredWorker] = []
        self.refusing: int | None = None

    @asynccontextmanager
    async def running(self, *_: object) -> AsyncIterator[Sequence[int]]:
        costs = replace(COSTS, cold_s=0.0, first_meeting_s=self._coming.pop(0))
        self.num += 1
        async with a_pair(costs) as self._pair:
            self._pair[1].refuses_longer_than = self.refusing
            yield ()

    def talkers_of(self, *_: object) -> dict[Role, Talker]:
        return talkers(self._pair)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_module, "_running", self.running)
        monkeypatch.setattr(run_module, "talkers_of", self.talkers_of)


def options(tmp_path: Path, num_starts: int = 1, budget_s: float = 2.5) -> ProfileOptions:
    return ProfileOptions(
        out=tmp_path / "tiny",
        log_dir=tmp_path,
        budget_s=budget_s,
        meter="none",
        max_batch=2,
        sweeps=frozenset({Sweep.PREFILL, Sweep.DECODE}),
        num_starts=num_starts,
    )


def test_each_start_gives_one_and_the_profile_their_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, events = Starts(0.8, 0.2, 0.4), list[Event]()
    starts.patch(monkeypatch)
    with pytest.raises(ConfigError, match="what was measured is kept"):
        run_profile(CPU, options(tmp_path, num_starts=2, budget_s=0.0), events.append)
    (profiled,) = run_profile(CPU, options(tmp_path), events.append)  # goes on
    assert starts.num == 3
    assert sum("first handoff of the pair" in str(event) for event in events) == 3
    profile = load_profile(tmp_path / "tiny.yaml")
    assert profile == profiled.profile
    assert profile.schema_version == 2
    assert profile.first_handoff_s == pytest.approx(0.4, abs=NOISE_S)
    told = f"less the median of its next {NUM_LATER}, the median of 3 starts"
    assert told in profile.provenance.source


def test_a_pair_that_refuses_it_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, events = Starts(0.2), list[Event]()
    starts.refusing = 40
    starts.patch(monkeypatch)
    with pytest.raises(ConfigError, match="prefill and decode points"):  # it refuses those as well
        run_profile(CPU, options(tmp_path, budget_s=0.5), events.append)
    assert any("first handoff was not measured: " in str(event) for event in events)


def test_attached_workers_are_not_started(tmp_path: Path) -> None:
    chosen = replace(options(tmp_path, 2), attach=("http://127.0.0.1:9",))
    with pytest.raises(ConfigError, match="--starts: attached workers"):
        run_profile(CPU, chosen, lambda event: None)
