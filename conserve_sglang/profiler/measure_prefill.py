"""Measures one prefill point: prompts of random tokens that are answered with one token.

With the scheduler's stamps (--enable-metrics) a repeat lasts from the batch's start in the
scheduler until its result; without, as the client sees it. Power is that of a worker kept busy by
two requests in flight, so that its device does not wait for the client.
"""

import asyncio
import time
from collections.abc import Sequence

from conserve_sglang.profiler.outcome import Clock, Outcome, outcome_of
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.power import LEAST_WINDOW_S, PowerTrack
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Reply, Talker

NUM_WARM_UP = 2
_MOST_INVALID = 8
_BLOCKER_CHUNKS = 4
_TOGETHER = 0.2  # of a repeat's length: how far apart a batch's stamps may lie
_MOST_MISSED = 0.02  # of a cached prefix: a page at its end is not reused


class PrefillMeasure:
    """Measures points on one worker. `chunk_tokens` is the most that it prefills in a step.

    `runs_behind`: its device runs behind its scheduler, as a GPU does. Then a batch that is started
    while another one runs waits for it first; on a CPU starting is running.
    """

    def __init__(
        self,
        talker: Talker,
        chunk_tokens: int,
        power: PowerTrack | None,
        *,
        runs_behind: bool = True,
    ) -> None:
        self._talker = talker
        self._chunk_tokens = chunk_tokens
        self._power = power
        self._runs_behind = runs_behind

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """Warm up, then repeat until the rule says that it is enough."""
        began_s = time.monotonic()
        prefix = self._talker.prompt(point.cached_tokens)
        if prefix:
            await self._talker.generate(prefix)
        for _ in range(NUM_WARM_UP):
            await self._repeat(point, prefix)
        prepare_s = time.monotonic() - began_s
        repeats: list[float] = []
        clock: Clock = "scheduler"
        num_invalid = 0
        measured_from_s = time.monotonic()
        while not rule.is_enough(repeats, time.monotonic() - measured_from_s):
            found = await self._repeat(point, prefix)
            if found is None:
                num_invalid += 1
                if num_invalid > _MOST_INVALID + len(repeats):
                    break
                if prefix:
                    await self._talker.generate(prefix)
                continue
            seconds, clock = found
            repeats.append(seconds)
        watts = await self._watts(point, prefix, repeats) if repeats else None
        took_s = time.monotonic() - began_s
        return outcome_of(point, repeats, took_s, prepare_s=prepare_s, clock=clock, watts=watts)

    async def _repeat(self, point: Point, prefix: list[int]) -> tuple[float, Clock] | None:
        """Seconds of one repeat and whose clock they are of; None when it was something else."""
        if point.batch == 1:
            reply = await self._talker.generate(prefix + self._talker.prompt(point.new_tokens))
            return _alone(reply, point)
        prompts = [self._talker.prompt(point.new_tokens) for _ in range(point.batch)]
        blocker = self._talker.prompt(self._chunk_tokens * _BLOCKER_CHUNKS)
        # While the blocker is prefilled the batch gathers behind it, so that it starts as one.
        # Whole chunks: the last one has no room for a part of what follows.
        ahead = asyncio.create_task(self._talker.generate(blocker))
        await asyncio.sleep(0)
        replies = await asyncio.gather(*(self._talker.generate(prompt) for prompt in prompts))
        freed = (await ahead).meta.prefill_finished_time
        return _together(replies, freed if self._runs_behind else 0.0)

    async def _watts(
        self, point: Point, prefix: list[int], repeats: Sequence[float]
    ) -> float | None:
        if self._power is None:
            return None
        until_s = time.monotonic() + max(LEAST_WINDOW_S, 4 * min(repeats)) * 1.2
        begin_s = time.monotonic() + 0.1 * LEAST_WINDOW_S

        async def keep_busy() -> None:
            while time.monotonic() < until_s:
                await self._talker.generate(prefix + self._talker.prompt(point.new_tokens))

        # As many in flight as are prefilled together, twice: one batch waits behind the other.
        await asyncio.gather(*(keep_busy() for _ in range(2 * point.batch)))
        return await asyncio.to_thread(self._power.watts, begin_s, until_s)


def _alone(reply: Reply, point: Point) -> tuple[float, Clock] | None:
    if reply.meta.cached_tokens < point.cached_tokens * (1 - _MOST_MISSED):
        return None
    begin, end = reply.meta.forward_entry_time, reply.meta.prefill_finished_time
    if begin is None or end is None:
        return reply.seconds, "client"
    return (end - begin, "scheduler") if end > begin else None


def _together(replies: Sequence[Reply], freed: float | None) -> tuple[float, Clock] | None:
    """A batch starts when it is taken in, or when its device is freed, whichever is later."""
    begins = [reply.meta.forward_entry_time for reply in replies]
    ends = [reply.meta.prefill_finished_time for reply in replies]
    known_begins = [value for value in begins if value is not None]
    known_ends = [value for value in ends if value is not None]
    if freed is None or len(known_begins) < len(replies) or len(known_ends) < len(replies):
        return None
    seconds = max(known_ends) - max(*known_begins, freed)
    spread = max(
        max(known_begins) - min(known_begins), max(known_ends) - min(known_ends)
    )  # fmt: skip
    if seconds <= 0 or spread > _TOGETHER * seconds:
        return None
    return seconds, "scheduler"
