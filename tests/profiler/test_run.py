"""From a tier map to a profile on disk, on a worker that is attached to."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError, Unreachable
from conserve_sglang.core.tier import TierMap
from conserve_sglang.profiler.options import Event, ProfileOptions, meter_choice
from conserve_sglang.profiler.run import run_profile
from conserve_sglang.profiler.stand import measured_part
from conserve_sglang.profiler.sweep import Step
from conserve_sglang.profiles import Profile, load_profile
from conserve_sglang.tiermap import load_tier_map
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

FAST = Costs(prefill_s=0.001, per_new_s=1e-7, per_cached_s=0, step_s=0.002, per_kv_s=0)
CPU = Path(__file__).parents[2] / "tier_maps" / "cpu_local.yaml"
MIXED = Path(__file__).parents[2] / "tier_maps" / "a40_l4.yaml"


@contextmanager
def fake_worker() -> Iterator[FakeMeasuredWorker]:
    """One that serves in a thread of its own, as run_profile has an event loop of its own."""
    worker = FakeMeasuredWorker(costs=FAST)
    up, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with worker.serve():
            up.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(10)
    try:
        yield worker
    finally:
        ended.set()
        thread.join()


def options(tmp_path: Path, *urls: str, budget_s: float = 4.0) -> ProfileOptions:
    return ProfileOptions(
        out=tmp_path / "tiny",
        log_dir=tmp_path,
        attach=urls,
        budget_s=budget_s,
        meter="none",
        max_batch=4,
    )


def num_points(profile: Profile) -> int:
    return len(profile.prefill) + len(profile.decode)


@pytest.fixture
def tier_map() -> TierMap:
    return load_tier_map(CPU)


def test_a_profile_a_page_and_what_goes_on_later(tier_map: TierMap, tmp_path: Path) -> None:
    events: list[Event] = []
    with fake_worker() as worker:
        (first,) = run_profile(tier_map, options(tmp_path, worker.url), events.append)
        (second,) = run_profile(tier_map, options(tmp_path, worker.url), events.append)
    profile = load_profile(tmp_path / "tiny.yaml")
    assert profile == second.profile
    assert (profile.gpu, profile.engine_version, profile.graph_mode) == ("cpu", "0.5.23", "none")
    assert profile.provenance.kind == "measured"
    assert profile.power_provenance is None
    assert any(p.cached_tokens for p in profile.prefill)
    assert profile.prefill_s(16) == pytest.approx(FAST.prefill(16, 0), rel=0.8)
    assert num_points(second.profile) > num_points(first.profile)
    steps = [event for event in events if isinstance(event, Step)]
    begin = next(n for n in range(1, len(steps)) if steps[n].elapsed_s < steps[n - 1].elapsed_s)
    assert steps[begin].num_done == steps[begin - 1].num_done
    assert first.page is not None
    page = first.page.read_text()
    assert page.count("<svg") >= 3
    assert "http://127" not in page


def test_points_of_another_setup_are_not_mixed_in(tier_map: TierMap, tmp_path: Path) -> None:
    with fake_worker() as worker:
        run_profile(tier_map, options(tmp_path, worker.url), lambda event: None)
        journal = tmp_path / "tiny.points.jsonl"
        journal.write_text(journal.read_text().replace('"0.5.23"', '"0.5.17"'))
        with pytest.raises(ConfigError, match=r"engine_version: 0\.5\.17 there, 0\.5\.23 now"):
            run_profile(tier_map, options(tmp_path, worker.url), lambda event: None)


def test_without_both_phases_there_is_no_profile_but_the_points_are_kept(
    tier_map: TierMap, tmp_path: Path
) -> None:
    with fake_worker() as worker, pytest.raises(ConfigError, match=r"--minutes.*is kept"):
        run_profile(tier_map, options(tmp_path, worker.url, budget_s=0.0), lambda event: None)
    assert json.loads((tmp_path / "tiny.points.jsonl").read_text())["version"] == 1


def test_nobody_there(tier_map: TierMap, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        run_profile(tier_map, options(tmp_path, "http://127.0.0.1:9"), lambda event: None)


def test_a_cpu_has_no_power_cap(tier_map: TierMap, tmp_path: Path) -> None:
    with fake_worker() as worker:
        chosen = replace(options(tmp_path, worker.url), power_caps_w=(200.0,))
        with pytest.raises(ConfigError, match="--power-cap"):
            run_profile(tier_map, chosen, lambda event: None)


def test_one_worker_of_each_role_is_measured_and_tells_its_stamps(tier_map: TierMap) -> None:
    part = measured_part(tier_map, None, lambda host: True)
    assert [worker.worker_id for worker in part.workers] == ["prefill-0", "decode-0"]
    assert all(tier.sglang_flags["enable-metrics"] is True for tier in part.tiers)


def test_a_profile_is_of_one_kind_of_gpu() -> None:
    two_kinds = load_tier_map(MIXED)
    with pytest.raises(ConfigError, match=r"one kind of GPU.*--tier"):
        measured_part(two_kinds, None, lambda host: True)
    (tier,) = measured_part(two_kinds, two_kinds.tiers[1].name, lambda host: True).tiers
    assert tier.name == two_kinds.tiers[1].name


def test_a_tier_there_is_not(tier_map: TierMap) -> None:
    with pytest.raises(ConfigError, match="has no tier 'fast'; it has prefill, decode"):
        measured_part(tier_map, "fast", lambda host: True)


def test_a_meter_there_is_not() -> None:
    with pytest.raises(ConfigError, match="auto, zeus, nvml, cpu-model, none"):
        meter_choice("rapl")
