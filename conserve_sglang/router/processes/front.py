"""A front process: serves clients on the common port and asks the brain, its parent, over a socket.

`python -m conserve_sglang.router.processes.front --link-fd N`; started by the router alone.
"""

import argparse
import asyncio
import logging
import pickle
import signal
import socket
import sys
from typing import Any

import uvloop

from conserve_sglang.core.ids import TurnId
from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.access import worker_access
from conserve_sglang.router.door import Door
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.link import Link
from conserve_sglang.router.processes.remote import RemoteAbout, RemoteBrain, RemoteFleet
from conserve_sglang.router.tuning import raise_descriptor_limit, settle_memory
from conserve_sglang.serving.listening import bound
from conserve_sglang.telemetry.logs import configure

logger = logging.getLogger("conserve_sglang.router.front")  # not that of `__main__`

REPORT_INTERVAL_S = 0.25


class FrontProcess:
    """Serves from the brain's welcome until it says stop, or is gone."""

    def __init__(self) -> None:
        self.link = Link(talk.from_brain, self._hear, self._brain_gone)
        self.is_orphaned = False
        self._told_to_stop = asyncio.Event()
        self._is_hurried = False
        self._was_signalled = False
        self._welcome: asyncio.Future[talk.Welcome] = asyncio.get_running_loop().create_future()
        self._early: list[Any] = []
        self._door: Door
        self._fleet: RemoteFleet
        self._about: RemoteAbout
        self._brain: RemoteBrain
        self._told: dict[str, Any] = {}

    def stop(self, *, at_once: bool = False) -> None:
        """Finish what is open, or end it at once, and end."""
        self._told_to_stop.set()
        if at_once:
            self._is_hurried = True
            if hasattr(self, "_door"):
                self._door.hurry()

    def signalled(self) -> None:
        """Stop, at once when told a second time. What the brain says does not count: a signal to
        the whole group reaches both."""
        self.stop(at_once=self._was_signalled)
        self._was_signalled = True

    async def run(self) -> None:
        """Serve."""
        welcome = await self._welcome
        if self.is_orphaned:
            return
        tier_map: TierMap = pickle.loads(welcome.tier_map)
        settings = tier_map.router
        say = self.link.say
        self._fleet = RemoteFleet(say, settings.health, worker_access(settings))
        self._about = RemoteAbout(say)
        self._brain = RemoteBrain(say, welcome.secret)
        self._door = Door(tier_map, self._brain, self._fleet, self._about, welcome.number)
        early, self._early = self._early, []
        for message in early:
            self._take(message)
        await self._door.listen(bound(settings.host, welcome.port, "router.port", is_shared=True))
        settle_memory()
        say(talk.Ready())
        reporting = asyncio.get_running_loop().create_task(self._report_on())
        await self._told_to_stop.wait()
        if self._is_hurried:
            self._door.hurry()
        await self._door.drain()
        reporting.cancel()
        self._door.close()
        self._fleet.close()
        self._count()
        self.link.close()

    def _hear(self, message: Any) -> None:
        if isinstance(message, talk.Welcome):
            self._welcome.set_result(message)
        elif not hasattr(self, "_door"):
            self._early.append(message)
        else:
            self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, talk.Carried):
            self._door.executor.carry_out(talk.carried(message))
        elif isinstance(message, talk.Identified):
            conversation = self._brain.identified(message)
            self._door.executor.identified(TurnId(message.turn_id), conversation)
        elif isinstance(message, talk.Standing):
            self._fleet.stands(message)
        elif isinstance(message, talk.Gone):
            self._fleet.gone(message)
        elif isinstance(message, talk.Said):
            self._about.said(message)
        elif isinstance(message, talk.Flush):
            self.link.say(talk.Flushed(message.number))
        elif isinstance(message, talk.ReloadKeys):
            self._door.reload_keys()
        else:
            self.stop(at_once=message.at_once)

    def _brain_gone(self) -> None:
        if not self._told_to_stop.is_set():
            logger.error("the router's main process is gone: this front stops serving")
            self.is_orphaned = True
        self.stop(at_once=True)
        if hasattr(self, "_about"):
            self._about.brain_gone()
        if not self._welcome.done():
            self._welcome.cancel()

    async def _report_on(self) -> None:
        seen = talk.Looked({})
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._count()
            looked = self._fleet.look()
            if looked.workers or seen.workers:
                self.link.say(looked)
            seen = looked

    def _count(self) -> None:
        counted = self._door.metrics.to_plain()
        if counted != self._told:
            self._told = counted
            self.link.say(talk.Counted(counted))


async def _run(link_fd: int) -> int:
    loop = asyncio.get_running_loop()
    front = FrontProcess()
    loop.add_signal_handler(signal.SIGTERM, front.signalled)
    # Ctrl-C reaches every process of the terminal; the parent says what comes of it.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)
    await loop.create_unix_connection(lambda: front.link, sock=socket.socket(fileno=link_fd))
    await front.run()
    return 1 if front.is_orphaned else 0


def main(argv: list[str] | None = None) -> int:
    """Run; 0 after an orderly stop, 1 when the brain went first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--access-log", action="store_true")
    arguments = parser.parse_args(argv)
    configure(arguments.log_level, arguments.log_format, with_access_log=arguments.access_log)
    raise_descriptor_limit()
    return uvloop.run(_run(arguments.link_fd))


if __name__ == "__main__":
    sys.exit(main())
