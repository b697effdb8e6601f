"""Measures one decode point: a batch of requests that write together, one of them streamed.

All requests of a batch step together, so the gaps between the tokens of one are the steps of all;
streaming them all would measure how fast a server writes to sockets. What is looked at begins when
the last of the batch is prefilled and ends when the first is done, by the scheduler's stamps, and
of that the steady part. Without stamps the beginning is found by the series alone.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from conserve_sglang.profiler.grid import DECODE_ROOM
from conserve_sglang.profiler.outcome import Clock, Outcome, outcome_of
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.power import LEAST_WINDOW_S, PowerTrack
from conserve_sglang.profiler.steady import steady_from, typical
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Reply, Talker

_FIRST_STEPS, _FEWEST_STEPS = 24, 16
_UNMETERED_S = 0.3
_MOST_INVALID = 5
_FEW_ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The steady part of one round: seconds of a step, KV tokens of the batch at the mean, and
    when it was."""

    step_s: float
    kv_tokens: float
    begin_s: float
    end_s: float
    clock: Clock


class DecodeMeasure:
    """Measures points on one worker."""

    def __init__(self, talker: Talker, power: PowerTrack | None) -> None:
        self._talker = talker
        self._power = power

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """Prefill the batch and warm up in a short round, then repeat rounds."""
        began_s = time.monotonic()
        length = point.kv_tokens // point.batch
        prompts = [self._talker.prompt(length) for _ in range(point.batch)]
        first = await self._round(prompts, _FIRST_STEPS)
        prepare_s = time.monotonic() - began_s
        num_steps = self._steps(first.step_s if first else None, point.batch, rule)
        rounds: list[Round] = []
        num_invalid = 0
        measured_from_s = time.monotonic()
        while not rule.is_enough([r.step_s for r in rounds], time.monotonic() - measured_from_s):
            found = await self._round(prompts, num_steps)
            if found is not None:
                rounds.append(found)
                continue
            num_invalid += 1
            if num_invalid > _MOST_INVALID:
                break
            num_steps = min(2 * num_steps, _most_steps(point.batch))
        return outcome_of(
            point,
            [one.step_s for one in rounds],
            time.monotonic() - began_s,
            prepare_s=prepare_s,
            clock=rounds[0].clock if rounds else "scheduler",
            watts=await asyncio.to_thread(self._watts, rounds),
            kv_tokens=round(sum(r.kv_tokens for r in rounds) / len(rounds)) if rounds else None,
        )

    def _steps(self, step_s: float | None, batch: int, rule: StopRule) -> int:
        """Steps of a round: as long as a meter needs, if there is time for some rounds of it."""
        if step_s is None:
            return 2 * _FIRST_STEPS
        window_s = _UNMETERED_S
        if self._power is not None:
            window_s = max(window_s, min(LEAST_WINDOW_S, rule.most_seconds / _FEW_ROUNDS))
        return min(max(_FIRST_STEPS, round(1.2 * window_s / step_s)), _most_steps(batch))

    async def _round(self, prompts: Sequence[Sequence[int]], num_steps: int) -> Round | None:
        """All of the batch at once, the streamed one last."""
        longer = num_steps + _slack(len(prompts))
        others = [
            asyncio.create_task(self._talker.generate(prompt, longer)) for prompt in prompts[1:]
        ]
        await asyncio.sleep(0)
        try:
            probe = await self._talker.stream(prompts[0], num_steps)
            replies = await asyncio.gather(*others)
        finally:
            for other in others:
                other.cancel()
        return steady_part(probe, replies, sum(len(prompt) for prompt in prompts))

    def _watts(self, rounds: Sequence[Round]) -> float | None:
        """The mean over the rounds, each weighing as long as it was."""
        if self._power is None:
            return None
        total_j = total_s = 0.0
        for one in rounds:
            watts = self._power.watts(one.begin_s, one.end_s)
            if watts is not None:
                total_j += watts * (one.end_s - one.begin_s)
                total_s += one.end_s - one.begin_s
        return total_j / total_s if total_s else None


def steady_part(probe: Reply, others: Sequence[Reply], prompt_tokens: int) -> Round | None:
    """What the streamed one of a batch shows while all of it wrote; None if that was too short.

    `prompt_tokens` are those of the whole batch.
    """
    window = _whole_batch(probe, others)
    if window is None:
        return None
    begin_s, end_s, clock = window
    ticks = [tick for tick in probe.ticks if begin_s <= tick[0] <= end_s]
    gaps = [
        ((after[0] - before[0]) / (after[1] - before[1]), after[1] - before[1])
        for before, after in pairwise(ticks)
        if after[1] > before[1]
    ]
    steps = [gap for gap, count in gaps for _ in range(count)]
    cut = steady_from(steps)
    if len(steps) - cut < _FEWEST_STEPS:
        return None
    middle_tokens = (ticks[0][1] + cut + ticks[-1][1]) / 2
    return Round(
        step_s=typical(steps[cut:]),
        kv_tokens=prompt_tokens + (1 + len(others)) * middle_tokens,
        begin_s=ticks[0][0] + sum(steps[:cut]),
        end_s=ticks[-1][0],
        clock=clock,
    )


def _whole_batch(probe: Reply, others: Sequence[Reply]) -> tuple[float, float, Clock] | None:
    """From when to when all of the batch wrote, on this process's clock."""
    if len(probe.ticks) < _FEWEST_STEPS:
        return None
    first_s, last_s = probe.ticks[0][0], probe.ticks[-1][0]
    own = probe.meta.prefill_finished_time
    starts = [reply.meta.prefill_finished_time for reply in others]
    ends = [reply.meta.request_finished_ts for reply in others]
    if own is None or None in starts or None in ends:
        return first_s, last_s, "client"
    # Its first token came a moment after it was made: the scheduler's clock read on ours, late by
    # that moment. So the window ends early by as much, and begins so late.
    ours = first_s - own
    begin_s = max([first_s, *(start + ours for start in starts if start is not None)])
    end_s = min([last_s, *(end + ours for end in ends if end is not None)])
    return (begin_s, end_s, "scheduler") if end_s > begin_s else None


def _slack(batch: int) -> int:
    """How many tokens more the others write: they begin earlier, by as many steps at most."""
    return 8 + batch // 2


def _most_steps(batch: int) -> int:
    return DECODE_ROOM - _slack(batch)
