"""This replica's line to Redis: calls go out in batches, in order, and it is taken up again.

While it is down nothing is waited for: who asks is told None at once.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from conserve_sglang.core.errors import clause
from conserve_sglang.router.ports import About
from conserve_sglang.serving.ending import ended
from conserve_sglang.state.shared import Call, Session, SharedError, SharedStore
from conserve_sglang.telemetry.logs import told

logger = logging.getLogger(__name__)

RETRY_S = 0.5
ANSWER_TIMEOUT_S = 1.0  # how long a turn waits at most for what Redis says
LOOKS = 10  # at the clock, in that time
BATCH = 256
BEAT_S = 0.25
Then = Callable[[Any], None]


class Line(ABC):
    """`problem` says why Redis is not there, None while it is.

    `desk` answers about stored responses where replicas share them.
    """

    desk: About | None = None

    def __init__(self, store: SharedStore) -> None:
        self.problem: str | None = "Redis was not asked yet"
        self.num_failures = 0
        self.name = store.name
        self._store = store
        self._asked: list[tuple[Call, Then]] = []
        self._flying: list[tuple[Call, Then]] = []
        self._wake = asyncio.Event()
        self._is_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # whoever is on the line

    @abstractmethod
    def met(self) -> None:
        """Redis is there, again: what was heard of it before may be wrong."""

    @abstractmethod
    def news(self) -> list[tuple[Call, Then]]:
        """What there is to say without being asked, up to a batch."""

    def hear(self, words: list[str]) -> None:
        """Another replica said something. Who keeps nothing to itself has always written all."""
        if words[0] == "flush":
            self.ask(("FLUSHED", (words[2], words[1])), lambda answer: None)

    @abstractmethod
    def beat(self) -> None:
        """Comes every `BEAT_S`."""

    # calls

    def ask(self, call: Call, then: Then) -> None:
        """`then` is told the answer, or None for none; once, and soon."""
        if self.problem is not None:
            then(None)
            return
        self._asked.append((call, then))
        self._wake.set()

    async def answer(self, name: str, *arguments: str | bytes | int) -> Any:
        """What Redis says to a call; None if it is gone."""
        heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def hear(answer: Any) -> None:
            if not heard.done():
                heard.set_result(answer)

        self.ask((name, arguments), hear)
        return await heard

    def wake(self) -> None:
        """There is news."""
        self._wake.set()

    async def restore(self) -> None:
        """Take up the line, and wait a moment for it."""
        self._task = asyncio.get_running_loop().create_task(self._keep_up())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_up.wait(), ANSWER_TIMEOUT_S)

    async def stop(self) -> None:
        """Say what is left to say, and hang up."""
        if self._task is None:
            return
        await ended(self._task)
        if self.problem is None:
            with suppress(*SharedError):
                session = await self._store.connect()
                try:
                    while calls := self.news():
                        await asyncio.wait_for(
                            session.exchange([call for call, _ in calls]), ANSWER_TIMEOUT_S
                        )
                    await session.exchange([("LEFT", ())])
                finally:
                    await session.close()

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._one_session()
            except Exception as error:
                self._lost(error)
            await asyncio.sleep(RETRY_S)

    async def _one_session(self) -> None:
        session = await asyncio.wait_for(self._store.connect(), 2 * ANSWER_TIMEOUT_S)
        try:
            if self.num_failures:
                logger.warning("Redis is there again", extra=told("redis_back"))
            self.problem = None
            self.met()
            self._is_up.set()
            self._wake.set()
            await _until_first(self._talk(session), self._listen(session), self._beat())
        finally:
            await session.close()

    async def _talk(self, session: Session) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # What is known here comes first, so that it is part of the answers.
            while batch := [*self.news(), *self._asked]:
                self._flying, self._asked = batch, []
                calls = [call for call, _ in batch]
                answers = await _within(ANSWER_TIMEOUT_S, session.exchange(calls))
                self._flying = []
                for (_, then), answer in zip(batch, answers, strict=True):
                    _tell(then, answer)

    async def _listen(self, session: Session) -> None:
        async for words in session.messages():
            self.hear(words)

    async def _beat(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(BEAT_S)

    def _lost(self, error: Exception) -> None:
        self.num_failures += 1
        why = clause(error)
        if self.problem is None or self.num_failures == 1:
            known = isinstance(error, SharedError)
            logger.warning(
                "Redis is gone: %s. Conversations of this replica go on, others begin anew",
                why,
                exc_info=None if known else error,
                extra=told("redis_gone", why=why),
            )
        self.problem = f"Redis is gone, pins are not shared with other replicas: {why}"
        waiting, self._flying, self._asked = [*self._flying, *self._asked], [], []
        for _, then in waiting:
            _tell(then, None)


async def _within(limit_s: float, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """What `work` returns; TimeoutError if that takes too long.

    A moment in which this process stood still counts as one look at the clock only, so that a
    router without a processor does not take itself for a router without Redis.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        for _ in range(LOOKS):
            await asyncio.wait({task}, timeout=limit_s / LOOKS)
            if task.done():
                return task.result()
        raise asyncio.TimeoutError
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_first(*work: Coroutine[Any, Any, None]) -> None:
    """Do all at once until one of them fails, as it must some day."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tell(then: Then, answer: Any) -> None:
    try:
        then(answer)
    except Exception:
        logger.exception("what Redis said could not be used")
