"""Measures moving KV from a prefiller to a decoder that has nothing of it yet.

The prefiller has the prompt cached, so that its KV moves at once and not chunk by chunk behind the
prefill. A repeat is the time from the scheduler's end of prefill until the prefiller's answer,
which it gives when the KV has arrived, less the same time of a request whose KV goes nowhere.
"""

import asyncio
import statistics
import time
from typing import Any

from conserve_sglang.profiler.outcome import Outcome, outcome_of
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Reply, Talker

_NUM_BASELINE = 5
_MOST_INVALID = 8
_FLUSH_S = 5.0
NEEDS_STAMPS = "a transfer is told from its prefill by the scheduler's stamps: --enable-metrics"


class TransferMeasure:
    """Measures points between two workers, which nobody else may be using."""

    def __init__(self, prefiller: Talker, decoder: Talker) -> None:
        self._prefiller = prefiller
        self._decoder = decoder

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """Move the same prompt again and again, the decoder emptied before each time."""
        began_s = time.monotonic()
        prompt = self._prefiller.prompt(point.new_tokens)
        if _after_prefill(await self._move(prompt)) is None:
            return Outcome(point=point, took_s=time.monotonic() - began_s, failure=NEEDS_STAMPS)
        base_s = await self._baseline(prompt)
        prepare_s = time.monotonic() - began_s
        repeats: list[float] = []
        num_invalid = 0
        measured_from_s = time.monotonic()
        while not rule.is_enough(repeats, time.monotonic() - measured_from_s):
            took_s = _after_prefill(await self._move(prompt))
            if took_s is not None and took_s > base_s:
                repeats.append(took_s - base_s)
                continue
            num_invalid += 1
            if num_invalid > _MOST_INVALID + len(repeats):
                break
        took_s = time.monotonic() - began_s
        return outcome_of(point, repeats, took_s, prepare_s=prepare_s, clock="scheduler")

    async def _move(self, prompt: list[int]) -> Reply:
        """One hand-over; the prefiller's answer."""
        await self._empty_decoder()
        fields: dict[str, Any] = self._prefiller.paired()
        reply, _ = await asyncio.gather(
            self._prefiller.generate(prompt, fields=fields),
            self._decoder.generate(prompt, fields=fields),
        )
        return reply

    async def _baseline(self, prompt: list[int]) -> float:
        found = []
        for _ in range(_NUM_BASELINE):
            took_s = _after_prefill(await self._prefiller.generate(prompt))
            if took_s is not None:
                found.append(took_s)
        return statistics.median(found) if found else 0.0

    async def _empty_decoder(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        while not await self._decoder.flush() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def _after_prefill(reply: Reply) -> float | None:
    finished, answered = reply.meta.prefill_finished_time, reply.meta.request_finished_ts
    return None if finished is None or answered is None else answered - finished
