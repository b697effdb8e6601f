"""A profile from beginning to end: workers up, points measured, files written."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import ConfigError, LaunchError, NotCapable
from conserve_sglang.core.tier import TierMap
from conserve_sglang.launcher.caps import caps_here, hold_caps
from conserve_sglang.launcher.here import host_test
from conserve_sglang.launcher.launch import make_room_for_logs
from conserve_sglang.launcher.plan import make_plan
from conserve_sglang.launcher.preflight import check
from conserve_sglang.launcher.progress import Progress
from conserve_sglang.launcher.progress import Step as LaunchStep
from conserve_sglang.launcher.supervise import SuperviseSettings, Supervisor
from conserve_sglang.profiler.assemble import assemble
from conserve_sglang.profiler.facts import machine_facts, setup_of
from conserve_sglang.profiler.grid import candidates
from conserve_sglang.profiler.journal import Journal
from conserve_sglang.profiler.options import Profiled, ProfileOptions, Report
from conserve_sglang.profiler.outcome import surest
from conserve_sglang.profiler.page import write_page
from conserve_sglang.profiler.planner import Planner
from conserve_sglang.profiler.power_source import PowerSource, power_source
from conserve_sglang.profiler.stand import (
    Stand,
    at_cap,
    attached_talkers,
    look_at,
    measured_part,
    named_for_cap,
    talkers_of,
)
from conserve_sglang.profiler.sweep import run_sweep
from conserve_sglang.profiles import Profile, save_profile

IDLE_S = 3.0
_SETTLE_S = 2.0
_WHOLE_BUDGET_S = 60.0  # with less, less of it is spent idle


def run_profile(tier_map: TierMap, options: ProfileOptions, report: Report) -> tuple[Profiled, ...]:
    """Measure until done, out of time, or interrupted; the points so far are kept on disk.

    One profile for each power cap given, or one with the tier map's. Caps are put back at the end.
    Raises `CapsError`, `ConfigError`, `LaunchError`, `MeterError`, or `WorkerError` when a worker
    is lost.
    """
    return asyncio.run(_until_signal(_profile(tier_map, options, report)))


async def _until_signal(work: Coroutine[Any, Any, tuple[Profiled, ...]]) -> tuple[Profiled, ...]:
    """Let Ctrl-C and SIGTERM end the work in order, workers and all."""
    task = asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise LaunchError(
            "interrupted; what was measured is kept, and the same command goes on from there"
        ) from None


async def _profile(
    tier_map: TierMap, options: ProfileOptions, report: Report
) -> tuple[Profiled, ...]:
    rng = random.Random(os.urandom(16))
    if options.attach and options.num_starts > 1:
        raise ConfigError("--starts: attached workers are not started here; leave one of both out")
    if options.attach:
        talkers = await attached_talkers(options.attach, tier_map, rng)
        stand = await look_at(tier_map, talkers, is_ours=False, max_batch=options.max_batch)
        return await _at_each_cap(Started(tier_map, stand, (), ()), options, report)
    part = measured_part(tier_map, options.tier, host_test(options.host))
    firsts_s: tuple[float, ...] = ()
    for number in range(1, options.num_starts + 1):
        async with _running(part, options, report) as pids:
            stand = await look_at(
                part, talkers_of(part, rng), is_ours=True, max_batch=options.max_batch
            )
            firsts_s += await _first_handoff(stand, report)
            if number == options.num_starts:
                started = Started(part, stand, pids, firsts_s)
                return await _at_each_cap(started, options, report)
            stand.close()
    raise ConfigError("--starts must be at least 1")


async def _first_handoff(stand: Stand, report: Report) -> tuple[float, ...]:
    try:
        seconds = await stand.first_handoff_s()
    except NotCapable as refused:
        report(f"the pair's first handoff was not measured: {refused}")
        return ()
    if seconds is None:
        return ()
    report(f"first handoff of the pair: {1e3 * seconds:.1f} ms beyond later ones")
    return (seconds,)


@dataclass(frozen=True, slots=True)
class Started:
    """Workers that answer. `pids`: their process groups. `firsts_s`: the first handoffs of this
    run, beyond later ones."""

    part: TierMap
    stand: Stand
    pids: Sequence[int]
    firsts_s: Sequence[float]


async def _at_each_cap(
    started: Started, options: ProfileOptions, report: Report
) -> tuple[Profiled, ...]:
    """The same workers under one cap after the other."""
    found = []
    try:
        for cap_w in options.power_caps_w or (None,):
            capped, here = at_cap(started.part, started.stand, cap_w)
            holding = hold_caps(caps_here(capped, options.host), report)
            try:
                out = named_for_cap(options.out, cap_w)
                at_this = replace(started, part=capped, stand=here)
                found.append(await _measure(at_this, replace(options, out=out), report))
            finally:
                if holding is not None:
                    holding.close()
    finally:
        started.stand.close()
    return tuple(found)


@contextlib.asynccontextmanager
async def _running(
    part: TierMap, options: ProfileOptions, report: Report
) -> AsyncIterator[Sequence[int]]:
    """The workers, up inside the block; their process groups."""
    plan = make_plan(part, is_here=lambda host: True, python=sys.executable, with_router=False)
    check(plan, part)
    serving, pids = asyncio.Event(), []

    def hear(progress: Progress) -> None:
        report(progress)
        if progress.step is LaunchStep.READY and progress.pid is not None:
            pids.append(progress.pid)
        if progress.step is LaunchStep.SERVING:
            serving.set()

    make_room_for_logs(plan, options.log_dir)
    settings = SuperviseSettings(log_dir=options.log_dir, ready_timeout_s=options.ready_timeout_s)
    supervisor = Supervisor(plan, settings, hear)
    life = asyncio.create_task(supervisor.run())
    ready = asyncio.create_task(serving.wait())
    try:
        await asyncio.wait({life, ready}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        yield pids
    finally:
        ready.cancel()
        if not life.done():
            supervisor.stop("measuring is over")
        await asyncio.wait({life})


async def _measure(started: Started, options: ProfileOptions, report: Report) -> Profiled:
    tier_map, stand = started.part, started.stand
    setup = setup_of(tier_map, stand.tier, stand.infos.values())
    path = options.out.with_name(options.out.name + ".points.jsonl")
    if options.begins_anew:
        path.unlink(missing_ok=True)
    journal = Journal(path, setup)
    source = power_source(options.meter, stand.tier, tier_map.workers, started.pids)
    with contextlib.ExitStack() as open_things:
        if source.track is None:
            report(f"no watts: {source.why}")
        else:
            open_things.enter_context(source.track.running())
        if journal.num_found:
            report(f"going on from {journal.num_found} points in {path}")
        machine = machine_facts(dict(source.gpu_facts))
        await _begin(journal, source, options.budget_s)
        for seconds in started.firsts_s:
            journal.add_first_handoff(seconds)
        measures = stand.measures(source.track)
        wanted = options.sweeps & measures.keys()
        await run_sweep(
            Planner(candidates(stand.limits, frozenset(wanted))),
            measures,
            journal,
            budget_s=options.budget_s,
            report=report,
        )
    profile = assemble(
        options.out.name,
        tier_map,
        stand,
        journal,
        source,
        machine=machine,
    )
    failures = tuple(
        (point.key, one.failure)
        for point, one in surest(journal.outcomes).items()
        if one.failure is not None
    )
    path = save_profile(profile, options.out.parent)
    return Profiled(
        profile=profile, path=path, page=_page(profile, path, report), failures=failures
    )


def _page(profile: Profile, path: Path, report: Report) -> Path | None:
    try:
        return write_page(profile, path.with_suffix(".html"))
    except ConfigError as error:
        report(str(error))
        return None


async def _begin(journal: Journal, source: PowerSource, budget_s: float | None) -> None:
    """Measure what loaded workers draw that have nothing to do, unless an earlier run has."""
    share = 1.0 if budget_s is None else min(1.0, max(0.2, budget_s / _WHOLE_BUDGET_S))
    if journal.num_found or source.track is None:
        journal.begin(None)
        return
    await asyncio.sleep(_SETTLE_S * share)
    begin_s = time.monotonic()
    await asyncio.sleep(IDLE_S * share)
    watts = await asyncio.to_thread(source.track.watts, begin_s, time.monotonic())
    journal.begin(watts)
