"""Waits until every replica has written what it had at some moment.

A client may have an answer from one replica and come with its next request to another before the
first has written to Redis what it stored. So before something is called unknown, the others say
that they have written all; those that do not listen any more are not waited for.
"""

import asyncio
from contextlib import suppress

from conserve_sglang.router.brain import Brain
from conserve_sglang.router.replica_line import Line
from conserve_sglang.serving.ending import ended

TIMEOUT_S = 1.0


class Flushes:
    """One round at a time; whoever comes during a round waits for the next, in which all share."""

    def __init__(self, line: Line, brain: Brain) -> None:
        self._line = line
        self._brain = brain
        self._num_rounds = 0
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._has_heard = asyncio.Event()
        self._heard: set[str] = set()
        self._askers: list[tuple[str, str]] = []

    async def all_written(self) -> None:
        """Go on when all replicas have written what they have now, or after `TIMEOUT_S`."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._round(self._running))
        await asyncio.shield(self._next)

    async def stop(self) -> None:
        """Wait for nobody any more."""
        for task in (self._next, self._running):
            await ended(task)

    async def _round(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        self._num_rounds += 1
        self._heard.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._heard_all(), TIMEOUT_S)

    async def _heard_all(self) -> None:
        channels = await self._line.answer("FLUSH", self._num_rounds)
        if channels is None:
            return
        awaited = {channel.decode().rpartition(":")[2] for channel in channels}
        while not awaited <= self._heard:
            self._has_heard.clear()
            await self._has_heard.wait()

    # what replicas say

    def flushed(self, number: str, name: str) -> None:
        """A replica has written all it had when this round began."""
        if number == str(self._num_rounds):
            self._heard.add(name)
            self._has_heard.set()

    def flush(self, number: str, asker: str) -> None:
        """A replica wants to know when this one has written all."""

        def settled() -> None:
            self._askers.append((asker, number))
            self._line.wake()

        self._brain.settle(settled)

    def take_askers(self) -> list[tuple[str, str]]:
        """Who is to be told, and of which round, now that all is written."""
        askers, self._askers = self._askers, []
        return askers
