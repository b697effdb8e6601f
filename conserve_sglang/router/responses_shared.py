"""Stored responses that all replicas of the router know, through Redis.

Redis is asked whenever it is there, so that what one replica deleted no other goes on from; of
what was said, only what this replica has not is read. While Redis is gone, this replica goes on
from what it has, and says of anything else that it cannot know. Response objects are read from
Redis each time: no replica has copies of what another one answered.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.ports import Question, Subject, Told, refusal
from conserve_sglang.router.problem import OWN_FAULT, Problem
from conserve_sglang.router.replica_flush import Flushes
from conserve_sglang.router.replica_line import Line, Then
from conserve_sglang.router.responses_about import (
    TOO_LONG,
    ResponseDesk,
    deleted,
    told_history,
    told_object,
    unknown,
)
from conserve_sglang.router.responses_copies import MAX_BYTES, Copies
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.serving.ending import ended
from conserve_sglang.state.shared import Call

logger = logging.getLogger(__name__)

MAX_LINKS = 256  # of a history, looked up at a time
LOOK_S = 0.1  # how often, while a replica does not say that it has written all
MAX_READ = 8  # histories at a time: they may be long
_OURS = re.compile(r"resp_[0-9a-f]{32}\Z")
REDIS_GONE = Problem(
    status=503,
    code="responses_unavailable",
    message="Redis is gone, and this replica of the router cannot tell by itself. Try again, or"
    " send the whole input instead; GET /health says when Redis is there again.",
    param="previous_response_id",
    retry_after_s=1,
)


class _Link(NamedTuple):
    """One response of a history; `stored` is this replica's copy."""

    name: str
    num_bytes: int
    stored: Stored | None


class _RedisGoneError(Exception):
    """Redis does not answer."""


class SharedResponses:
    """Answers questions about stored responses, after a moment; see `About`."""

    def __init__(self, line: Line, brain: Brain, max_history_bytes: int, life_s: float) -> None:
        self._line = line
        self._store = brain.responses
        self._max_history_bytes = max_history_bytes
        self._desk = ResponseDesk(brain.responses, max_history_bytes)
        self._copies = Copies(brain.responses, life_s, brain.now, line.wake)
        self._flushes = Flushes(line, brain)
        self._reading = asyncio.Semaphore(MAX_READ)
        self._tasks: set[asyncio.Task[None]] = set()
        brain.shares_responses = True

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """`hear` is told the answer once."""
        task = asyncio.get_running_loop().create_task(self._answer(question, hear))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Answer no more."""
        for task in tuple(self._tasks):
            await ended(task)
        await self._flushes.stop()

    async def _answer(self, question: Question, hear: Callable[[Told], None]) -> None:
        try:
            told = await self._told(question)
        except _RedisGoneError:
            told = self._alone(question)
        except Exception:
            logger.exception("a question about a response could not be answered")
            told = refusal(OWN_FAULT)
        hear(told)

    async def _told(self, question: Question) -> Told:
        name = question.name.decode("utf-8", "replace")
        if not _OURS.match(name):
            return unknown(question)
        look = _LOOKS.get(question.subject, SharedResponses._history)
        told = await look(self, question, name)
        if told is None:  # or another replica has not written it yet
            written = asyncio.ensure_future(self._flushes.all_written())
            while told is None and not written.done():
                await asyncio.wait({written}, timeout=LOOK_S)
                told = await look(self, question, name)
        return told or unknown(question)

    def _alone(self, question: Question) -> Told:
        """Without Redis. A response that others may know is not told to be deleted."""
        if question.subject is not Subject.FORGET:
            told = self._desk.answer(question)
            if told.status not in (400, 404):
                return told
        return refusal(REDIS_GONE)

    # looking

    async def _call(self, name: str, *arguments: str | bytes | int) -> Any:
        answer = await self._line.answer(name, *arguments)
        if answer is None:
            raise _RedisGoneError
        return answer

    async def _delete(self, question: Question, name: str) -> Told | None:
        if await self._call("DELETE", question.tenant, name, 0) != b"found":
            return None
        self._copies.deleted((question.tenant, name))
        return deleted(name)

    async def _object(self, question: Question, name: str) -> Told | None:
        key = (question.tenant, name)
        async with self._reading:
            found, response = await self._call("OBJECT", *key)
        if found == b"found":
            stored = self._copies.confirmed(key)
        else:
            stored = self._copies.unconfirmed(key)
            if found == b"deleted" or stored is None:
                self._copies.missed(key)
                return None
        return told_object(response or (stored.response if stored is not None else None))

    async def _history(self, question: Question, name: str) -> Told | None:
        tenant = question.tenant
        links = await self._chain(tenant, name)
        if links is None:
            return None
        if sum(link.num_bytes for link in links) > self._max_history_bytes:
            return refusal(TOO_LONG)
        texts = {link.name: link.stored.messages for link in links if link.stored is not None}
        if len(texts) < len(links):
            async with self._reading:
                if not await self._read(tenant, links, texts):
                    return None
        self._store.history(tenant, name)  # used, here too
        return told_history(question, [(link.name, texts[link.name]) for link in reversed(links)])

    async def _chain(self, tenant: TenantId, name: str) -> list[_Link] | None:
        """A response and those before it, the newest first, up to what a history may have; None if
        one of them is not there."""
        links: list[_Link] = []
        at, num_bytes = name, 0
        while at and num_bytes <= self._max_history_bytes:
            found, raw_at, flat = await self._call("CHAIN", tenant, at, MAX_LINKS)
            at = raw_at.decode()
            for raw_name, size in zip(flat[::2], flat[1::2], strict=True):
                each = raw_name.decode()
                links.append(_Link(each, size, self._copies.confirmed((tenant, each))))
            if found != b"found":
                stored = self._copies.unconfirmed((tenant, at))
                if found == b"deleted" or stored is None:
                    self._copies.missed((tenant, at))
                    return None
                links.append(_Link(at, len(stored.messages), stored))
                at = stored.previous or ""
            num_bytes = sum(link.num_bytes for link in links)
        return links

    async def _read(self, tenant: TenantId, links: list[_Link], texts: dict[str, bytes]) -> bool:
        """Add what this replica has not; False if something is gone by now."""
        before = {link.name: older.name for link, older in pairwise(links)}
        for names in _parts([link for link in links if link.name not in texts]):
            for name, text in zip(names, await self._call("TEXTS", tenant, *names), strict=True):
                if not text:
                    return False
                texts[name] = text
                self._copies.add((tenant, name), Stored(text, before.get(name)))
        return True

    # for the line

    def met(self) -> None:
        """Redis is there, again."""
        self._copies.met()

    def news(self) -> list[tuple[Call, Then]]:
        """What there is to say to Redis, up to a batch."""
        copies = self._copies
        was_checked = not copies.num_unchecked
        calls = copies.news()
        if was_checked and not copies.num_unsaid:
            for asker, number in self._flushes.take_askers():
                calls.append((("FLUSHED", (asker, number)), lambda answer: None))
        return calls

    def hear(self, words: list[str]) -> bool:
        """What another replica said; whether it was about responses."""
        if words[0] == "deleted":
            self._copies.deleted((TenantId(words[1]), words[2]))
        elif words[0] == "flush":
            self._flushes.flush(*words[1:])
        elif words[0] == "flushed":
            self._flushes.flushed(*words[1:])
        else:
            return False
        return True


_LOOKS = {Subject.FORGET: SharedResponses._delete, Subject.RESPONSE: SharedResponses._object}


def _parts(links: list[_Link]) -> Iterator[list[str]]:
    """So many at a time that others need not wait long for the line."""
    part: list[str] = []
    num_bytes = 0
    for link in links:
        if part and num_bytes + link.num_bytes > MAX_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(link.name)
        num_bytes += link.num_bytes
    if part:
        yield part
