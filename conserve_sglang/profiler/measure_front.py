"""Measures what the first token of a turn takes beyond its prefill: on one worker, or through two.

Requests stream, since that is how a first token is seen; prompts are new ones each time, as those
of first turns are. A repeat is the time from the request to the first token, by the client's clock,
less the prefill by its scheduler's stamps. One worker's is HTTP, tokens, and the way in and out of
its scheduler. Through a prefiller and a decoder all of this is in it too, beside their handshake,
the KV's move, and the time until each sees that the other is ready. Nobody else may ask meanwhile.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from conserve_sglang.profiler.outcome import Outcome, outcome_of
from conserve_sglang.profiler.point import Point
from conserve_sglang.profiler.stopping import StopRule
from conserve_sglang.profiler.talk import Reply, Talker

NUM_WARM_UP = 2
_MOST_INVALID = 8
_NUM_TOKENS = 2  # a stream: with one token alone, its first event would be its last
FRONT_NEEDS_STAMPS = "told from its prefill by the scheduler's stamps: --enable-metrics"

Ask = Callable[[int], Awaitable[tuple[Reply, Reply]]]
"""Sends a new prompt of so many tokens; the streamed answer, and that of who prefilled."""


class RequestMeasure:
    """Measures points on one worker, which nobody else may be using."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """Ask again and again."""
        return await _measured(self._ask, point, rule)

    async def _ask(self, num_tokens: int) -> tuple[Reply, Reply]:
        reply = await self._talker.stream(self._talker.prompt(num_tokens), _NUM_TOKENS)
        return reply, reply


class HandoffMeasure:
    """Measures points between two workers, which nobody else may be using."""

    def __init__(self, prefiller: Talker, decoder: Talker) -> None:
        self._prefiller, self._decoder = prefiller, decoder

    async def measure(self, point: Point, rule: StopRule) -> Outcome:
        """Send turns through both again and again."""
        return await _measured(self._ask, point, rule)

    async def _ask(self, num_tokens: int) -> tuple[Reply, Reply]:
        prompt = self._prefiller.prompt(num_tokens)
        fields = self._prefiller.paired()
        prefilled, streamed = await asyncio.gather(
            self._prefiller.generate(prompt, fields=fields),
            self._decoder.stream(prompt, _NUM_TOKENS, fields=fields),
        )
        return streamed, prefilled


async def _measured(ask: Ask, point: Point, rule: StopRule) -> Outcome:
    began_s = time.monotonic()
    for _ in range(NUM_WARM_UP):
        _, prefilled = await ask(point.new_tokens)
        if _prefill_s(prefilled) is None:
            return Outcome(
                point=point, took_s=time.monotonic() - began_s, failure=FRONT_NEEDS_STAMPS
            )
    prepare_s = time.monotonic() - began_s
    repeats: list[float] = []
    num_invalid = 0
    measured_from_s = time.monotonic()
    while not rule.is_enough(repeats, time.monotonic() - measured_from_s):
        beyond_s = _beyond_prefill(*await ask(point.new_tokens))
        if beyond_s is not None and beyond_s > 0:
            repeats.append(beyond_s)
            continue
        num_invalid += 1
        if num_invalid > _MOST_INVALID + len(repeats):
            break
    took_s = time.monotonic() - began_s
    return outcome_of(point, repeats, took_s, prepare_s=prepare_s, clock="scheduler")


def _beyond_prefill(streamed: Reply, prefilled: Reply) -> float | None:
    prefill_s = _prefill_s(prefilled)
    if prefill_s is None or not streamed.ticks:
        return None
    return streamed.ticks[0][0] - streamed.sent_at_s - prefill_s


def _prefill_s(reply: Reply) -> float | None:
    begin, end = reply.meta.forward_entry_time, reply.meta.prefill_finished_time
    return None if begin is None or end is None else end - begin
