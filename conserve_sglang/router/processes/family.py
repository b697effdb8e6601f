"""Starts the fronts, restarts one that died, and stops them all."""

import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.hub import FrontSeat, Hub
from conserve_sglang.router.processes.link import Link

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0  # of a front that waits for no answer any more
FIRST_PAUSE_S = 0.2
MOST_PAUSE_S = 10.0
STEADY_S = 30.0  # a front that served for so long did not fail at its start


class Family:
    """The front processes, each with these arguments. `start` them once, `stop` them once."""

    def __init__(self, hub: Hub, settings: RouterSettings, arguments: Sequence[str]) -> None:
        self._hub = hub
        self._num_fronts = settings.processes
        self._drain_s = settings.drain_s
        self._arguments = arguments
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: set[asyncio.subprocess.Process] = set()
        self._is_stopping = False
        self._hurried = asyncio.Event()

    async def start(self) -> None:
        """Start every front; returns when all of them listen."""
        seats = [asyncio.Event() for _ in range(self._num_fronts)]
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(is_ready)) for is_ready in seats]
        waiting = asyncio.gather(*(is_ready.wait() for is_ready in seats))
        try:
            await asyncio.wait_for(waiting, READY_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            self.hurry()
            await self.stop()
            raise ConfigError(
                f"the router's {self._num_fronts} processes did not come up within"
                f" {READY_TIMEOUT_S:g} s; see their log, or try with --workers 1"
            ) from error

    async def stop(self) -> None:
        """Let every front finish what is open, for as long as it may, and end."""
        self._is_stopping = True
        self._hub.tell_all(self._stop())
        if self._keepers:
            hurried = asyncio.get_running_loop().create_task(self._hurried.wait())
            ended = asyncio.gather(*self._keepers, return_exceptions=True)
            await asyncio.wait(
                (ended, hurried),
                timeout=self._drain_s + END_TIMEOUT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if hurried.done():
                await asyncio.wait((ended,), timeout=END_TIMEOUT_S)
            hurried.cancel()
        for process in tuple(self._processes):
            with suppress(ProcessLookupError):
                process.kill()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def hurry(self) -> None:
        """Let every front end what is open at once, when it is told to stop or now."""
        self._hurried.set()
        if self._is_stopping:
            self._hub.tell_all(self._stop())

    def _stop(self) -> talk.Stop:
        return talk.Stop(at_once=self._hurried.is_set())

    def pids(self) -> tuple[int, ...]:
        """The fronts' process ids."""
        return tuple(process.pid for process in self._processes)

    async def _keep(self, is_ready: asyncio.Event) -> None:
        """One front after the other, in one place."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        while not self._is_stopping:
            began_at_s = loop.time()
            status = await self._run_one(is_ready)
            if self._has_to_stop():
                return
            if loop.time() - began_at_s > STEADY_S:
                pause_s = FIRST_PAUSE_S
            logger.error("a front process ended (%d); another one starts", status)
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_PAUSE_S, 2 * pause_s)

    def _has_to_stop(self) -> bool:
        return self._is_stopping

    async def _run_one(self, is_ready: asyncio.Event) -> int:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "conserve_sglang.router.processes.front",
                "--link-fd",
                str(theirs.fileno()),
                *self._arguments,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()
        self._processes.add(process)
        try:
            seat = await self._seat(ours)
            ready = asyncio.get_running_loop().create_task(_pass_on(seat.is_ready, is_ready))
            try:
                return await process.wait()
            finally:
                ready.cancel()
                self._hub.leave(seat)
        finally:
            self._processes.discard(process)

    async def _seat(self, ours: socket.socket) -> FrontSeat:
        def hear(message: Any) -> None:
            seat.hear(message)  # a front says nothing before it is welcome

        link = Link(talk.from_fronts, hear, lambda: self._hub.leave(seat))
        seat = self._hub.join(link.say)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        if self._is_stopping:
            seat.say(self._stop())
        return seat


async def _pass_on(first: asyncio.Event, second: asyncio.Event) -> None:
    await first.wait()
    second.set()
