"""Servers that share this machine's cores: measured on the servers, and charged in the simulator.

Measured is how much longer the steps of one server take while others work too, whatever the cause:
cores, caches, front ends. It is a unit measurement, with random prompts on busy servers; no result
of a conversation goes into it. In the simulator all workers go by it, by how many are busy.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.sim_fidelity.cluster import Site
from conserve_sglang.core.worker import Role
from conserve_sglang.profiler.facts import num_token_ids
from conserve_sglang.profiler.talk import Reply, Talker
from conserve_sglang.sim import PerfModel, Simulation
from conserve_sglang.tiermap import load_tier_map

NUM_PROMPT_TOKENS, NUM_TOKENS = 1024, 80
NUM_REPEATS = 12
PERIOD_S = 1e-3
"""How often the simulation is looked at; a decode step here takes some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How many times longer steps take with 1, 2, ... servers at work than with one."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    def of(self, num_busy: int) -> tuple[float, float]:
        """Of prefill and of decode; with more servers than were measured, that of the most."""
        index = max(1, min(num_busy, len(self.decode))) - 1
        return self.prefill[index], self.decode[index]


UNSHARED = Slowdown(prefill=(1.0,), decode=(1.0,))


def measure(site: Site) -> Slowdown:
    """One server that decodes, and one more beside it at each further measurement."""
    return asyncio.run(_measure(_talkers(site)))


def _talkers(site: Site) -> list[Talker]:
    """Those that decode first."""
    rng = random.Random(7)
    loaded = load_tier_map(next(iter(site.tier_maps.values())))
    ids = num_token_ids(Path(loaded.model.path))
    roles = {str(worker.worker_id): worker.role for worker in loaded.workers}
    found = [
        Talker(url, roles[name], num_token_ids=ids, rng=rng) for name, url in site.workers.items()
    ]
    return sorted(found, key=lambda talker: talker.role is Role.PREFILL)


async def _measure(talkers: Sequence[Talker]) -> Slowdown:
    try:
        first, counts = talkers[0], range(1, len(talkers) + 1)
        times = [await _beside(first, talkers[1:count]) for count in counts]
    finally:
        for talker in talkers:
            talker.close()
    (prefill_s, decode_s), *_ = times
    return Slowdown(
        prefill=_rising([seconds / prefill_s for seconds, _ in times]),
        decode=_rising([seconds / decode_s for _, seconds in times]),
    )


def _rising(ratios: Sequence[float]) -> tuple[float, ...]:
    """Never below 1, and never less with more servers, as noise may have it."""
    found = [1.0]
    for ratio in ratios[1:]:
        found.append(max(found[-1], ratio))
    return tuple(found)


async def _beside(talker: Talker, others: Sequence[Talker]) -> tuple[float, float]:
    """Seconds of a prefill and of a decode step while the others are kept busy."""
    is_over = asyncio.Event()
    busy = [asyncio.create_task(_keep_busy(other, is_over)) for other in others]
    try:
        prefills, steps = [], []
        for _ in range(NUM_REPEATS):
            reply = await talker.stream(talker.prompt(NUM_PROMPT_TOKENS), NUM_TOKENS)
            prefills.append(_prefill_s(reply))
            steps.append(_step_s(reply))
    finally:
        is_over.set()
        await asyncio.gather(*busy)
    return median(prefills), median(steps)


async def _keep_busy(talker: Talker, is_over: asyncio.Event) -> None:
    """One request after the other; the last one is ended."""
    while not is_over.is_set():
        prompt = talker.prompt(NUM_PROMPT_TOKENS)
        if talker.role is Role.PREFILL:
            await talker.generate(prompt)
        else:
            await talker.stream(prompt, NUM_TOKENS)


def _prefill_s(reply: Reply) -> float:
    begin, end = reply.meta.forward_entry_time, reply.meta.prefill_finished_time
    if begin is None or end is None:
        raise SystemExit("the servers tell no stamps: they must run with enable-metrics")
    return end - begin


def _step_s(reply: Reply) -> float:
    (first_s, first), (last_s, last) = reply.ticks[0], reply.ticks[-1]
    return (last_s - first_s) / max(1, last - first)


def slowed(perf: PerfModel, prefill: float, decode: float) -> PerfModel:
    """Unit costs with longer steps. What a turn takes beside them grows as prefill does."""
    if prefill == decode == 1.0:
        return perf
    tables = {
        name: tuple(prefill * seconds for seconds in getattr(perf, name))
        for name in (
            "prefill_s", "append_floor_s", "transfer_times_s", "request_times_s", "handoff_times_s",
        )
    }  # fmt: skip
    return replace(
        perf,
        prefill_s=tables["prefill_s"],
        append_floor_s=tables["append_floor_s"],
        transfer_times_s=tables["transfer_times_s"],
        request_times_s=tables["request_times_s"],
        handoff_times_s=tables["handoff_times_s"],
        decode_step_s=decode * perf.decode_step_s,
        decode_s_per_request=decode * perf.decode_s_per_request,
        decode_s_per_kv_token=decode * perf.decode_s_per_kv_token,
    )


class SharedCores:
    """Lets all workers of a simulation go by how many are busy, from `attach` on.

    A step in progress ends as it began. A worker that waits for a handoff counts as idle, although
    it polls; that a handoff takes so long is in what it was measured to take.
    """

    def __init__(self, perf: PerfModel, slowdown: Slowdown) -> None:
        most = len(slowdown.decode)
        self._perfs = [slowed(perf, *slowdown.of(count)) for count in range(most + 1)]
        self._count = 0
        self.most_busy = 0

    def attach(self, simulation: Simulation) -> None:
        """Begin before its conversations are played."""
        self._simulation = simulation
        for worker in simulation.workers.values():
            worker.joins_chunks = False
        simulation.kernel.at(0.0, self._look)

    def _look(self, now: float) -> None:
        simulation = self._simulation
        if simulation.is_over:
            return
        workers = simulation.workers.values()
        busy = sum(worker.is_busy for worker in workers)
        self.most_busy = max(self.most_busy, busy)
        count = min(busy, len(self._perfs) - 1)
        if count != self._count:
            self._count = count
            for worker in workers:
                worker.change(self._perfs[count], now)
        simulation.kernel.at(now + PERIOD_S, self._look)
