"""What the router remembers beyond its own life: read back at its start, then written behind.

The hot path only notes which conversations changed. A timer describes them a bounded number at a
time and hands them to a thread, so a turn never waits for the disk. What a killed router forgets
is what changed in the last `FLUSH_INTERVAL_S`: such a conversation goes on from its turn before,
or begins anew, and its decoder, which counts, has the last word on what is still cached.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from conserve_sglang.core.ids import ConversationId, TenantId, WorkerId
from conserve_sglang.dispatch import ConversationRestored
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.estimate import Counted
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.router.history import FiledAt
from conserve_sglang.router.responses_memory import ResponsesMemory
from conserve_sglang.serving.ending import ended
from conserve_sglang.state import MetWorker, Reconciled, SavedConversation, StateStore, reconcile

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 0.2
BATCH = 256  # described in one go: less than a millisecond of the loop's time
MAX_WRITTEN = 4096  # at a time: the more there are, the fewer pages are written for each
RETRY_S = 5.0
FIRST_MEETING_S = 5.0  # how long clients wait at most for workers that hold stored pins


class Memory:
    """Keeps a store in step with the brain. `problem` says why it cannot, None while it can."""

    desk = None  # nobody else knows of responses

    def __init__(
        self,
        store: StateStore,
        brain: Brain,
        fleet: Fleet,
        conversation_ttl_s: float,
        *,
        keep_responses: bool = False,
    ) -> None:
        self.problem: str | None = None
        self.num_failures = 0
        self._store = store
        self._brain = brain
        self._fleet = fleet
        self._ttl_s = conversation_ttl_s
        self._changed: set[str] = set()
        self._keep_responses = keep_responses
        self._responses = ResponsesMemory(brain.responses)
        self._absent: dict[str, list[SavedConversation]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._task: asyncio.Task[None] | None = None

    # at the start

    async def restore(self) -> None:
        """Go on with what is stored; to be awaited before clients are served."""
        loop = asyncio.get_running_loop()
        with _without_collector():
            saved = await loop.run_in_executor(self._thread, self._store.load)
            if saved:
                holders = {each.worker for each in saved if each.worker is not None}
                await self._fleet.until_probed(holders, FIRST_MEETING_S)
                await self._take_in(saved)
            await self._restore_responses()
        self._brain.conversations.changed = self._changed.add
        self._fleet.on_met = self._worker_met
        for worker in self._fleet.workers():  # those that came while the others were restored
            if self._is_met(worker):
                self._worker_met(worker)
        self._task = loop.create_task(self._write_on())

    async def _restore_responses(self) -> None:
        """Go on with stored responses; where they are not to be stored, those of before go."""
        run = asyncio.get_running_loop().run_in_executor
        if self._keep_responses:
            self._responses.restore(await run(self._thread, self._store.load_responses))
        else:
            await run(self._thread, self._store.forget_responses)

    async def _take_in(self, saved: list[SavedConversation]) -> None:
        workers = self._fleet.workers()
        found = reconcile(
            saved,
            {worker.worker_id: self._met(worker) for worker in workers if self._is_met(worker)},
            {worker.worker_id for worker in workers},
            oldest_at_wall=time.time() - self._ttl_s,
        )
        for number, (each, has_pin) in enumerate(_all_by_age(found)):
            self._restore_one(each, has_pin=has_pin)
            if number % BATCH == BATCH - 1:
                await asyncio.sleep(0)
        for each in found.absent:
            self._absent.setdefault(str(each.worker), []).append(each)
        for worker_id, keys in found.releases.items():
            self._fleet.release_all(WorkerId(worker_id), list(map(ConversationId, keys)))
        may_come = {each.key for each in found.absent}
        dropped = {each.key for each in (*found.unpinned, *found.ended)}
        self._changed |= dropped - may_come
        logger.info(
            "restored %d conversations, %d with their pin; pins dropped: %d of restarted workers,"
            " %d of workers not in the tier map, %d over a decoder's capacity, %d of workers not"
            " met yet; %d conversations were past their time to live",
            len(found.pinned) + len(found.unpinned),
            len(found.pinned),
            found.num_restarted,
            found.num_removed,
            found.num_over_capacity,
            len(found.absent),
            len(found.ended),
        )

    def _is_met(self, worker: Worker) -> bool:
        return worker.can_decode and self._fleet.is_up(worker.worker_id)

    def _met(self, worker: Worker) -> MetWorker:
        load = self._brain.dispatcher.worker_load(worker.worker_id)
        capacity = 0 if load is None else load.capacity_tokens
        return MetWorker(incarnation=worker.incarnation, kv_capacity_tokens=capacity)

    def _restore_one(self, saved: SavedConversation, *, has_pin: bool) -> None:
        conversation = self._brain.conversations.by_key(saved.key)
        if conversation is None:
            conversation = self._brain.conversations.restore(
                ConversationId(saved.key), TenantId(saved.tenant), saved.name
            )
            recall(conversation, saved)
            if saved.filed_at is not None:
                at = FiledAt(saved.filed_at, saved.filed_block, saved.filed_bytes)
                self._brain.conversations.refile(conversation, at)
        self._brain.tell(
            ConversationRestored(
                conversation_id=conversation.key,
                decoder=WorkerId(saved.worker) if has_pin and saved.worker else None,
                resident_tokens=saved.resident_tokens if has_pin else 0,
                prompt_tokens=saved.prompt_tokens,
                num_turns=saved.num_turns,
                num_kv_transfers=saved.num_kv_transfers,
                idle_s=max(0.0, time.time() - saved.last_active_at_wall),
                tenant=TenantId(saved.tenant),
            )
        )

    def _worker_met(self, worker: Worker) -> None:
        """A worker came late: what it holds is pinned to it after all, unless that moved on."""
        for saved in self._absent.pop(worker.worker_id, ()):
            view = self._brain.dispatcher.conversation(ConversationId(saved.key))
            is_unused = view is not None and view.num_turns == saved.num_turns
            if is_unused and saved.incarnation == worker.incarnation:
                self._restore_one(saved, has_pin=True)

    # while it runs

    async def stop(self) -> None:
        """Write what is left, and let go of the store."""
        if self._task is not None:
            await ended(self._task)
            while self._has_news() and await self._write_some():
                pass
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()

    def _has_news(self) -> bool:
        return bool(self._changed or self._responses)

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S if self.problem is None else RETRY_S)
            while self._has_news() and await self._write_some():
                pass

    async def _write_some(self) -> bool:
        """Store what changed, or much of it; False if that failed, and is to be tried again."""
        described: dict[str, SavedConversation | None] = {}
        responses = self._responses.take()
        loop = asyncio.get_running_loop()
        try:
            self._describe_batch(described)
            while self._changed and len(described) < MAX_WRITTEN:
                await asyncio.sleep(0)
                self._describe_batch(described)
            saved = [each for each in described.values() if each is not None]
            gone = [key for key, each in described.items() if each is None]
            await loop.run_in_executor(self._thread, self._store.write, saved, gone, *responses)
        except asyncio.CancelledError:
            self._changed.update(described)
            self._responses.put_back(*responses)
            raise
        except Exception as error:
            self._changed.update(described)
            self._responses.put_back(*responses)
            self.num_failures += 1
            if self.problem is None:
                logger.exception("the state is not being written; trying again")
            self.problem = f"the state is not being written: {error}"
            return False
        if self.problem is not None:
            logger.warning("the state is being written again")
        self.problem = None
        return True

    def _describe_batch(self, described: dict[str, SavedConversation | None]) -> None:
        """Add some that changed as they are now, None for those with nothing to go on with."""
        wall_s = time.time() - self._brain.now()
        for _ in range(min(BATCH, len(self._changed))):
            key = self._changed.pop()
            described[key] = None  # should it fail, the key is not lost
            described[key] = describe(self._brain, self._fleet, key, wall_s)


@contextmanager
def _without_collector() -> Iterator[None]:
    """All that is made here stays, and the collector would walk it again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def describe(brain: Brain, fleet: Fleet, key: str, wall_s: float) -> SavedConversation | None:
    """A conversation to be stored, None if there is nothing to go on with.

    `wall_s` is what the loop's clock lacks to the time of day. The turns still open are not part
    of it: nobody knows what becomes of them.
    """
    conversation = brain.conversations.by_key(key)
    view = brain.dispatcher.conversation(ConversationId(key))
    if conversation is None or view is None or not view.prompt_tokens:
        return None
    decoder = view.decoder if view.resident_tokens else None
    at, counted = conversation.filed_at, conversation.counted
    return SavedConversation(
        key,
        conversation.tenant,
        conversation.name,
        decoder,
        None if decoder is None else fleet.worker(decoder).incarnation,
        view.resident_tokens,
        view.prompt_tokens,
        view.num_turns - view.num_open_turns,
        view.num_kv_transfers,
        view.last_active_at_s + wall_s,
        None if at is None else at.digest,
        None if at is None else at.block,
        0 if at is None else at.num_bytes,
        None if counted is None else counted.num_bytes,
        None if counted is None else counted.num_tokens,
    )


def recall(conversation: Conversation, saved: SavedConversation) -> None:
    """Go on with the last prompt that was counted."""
    if saved.counted_bytes is not None and saved.counted_tokens is not None:
        conversation.counted = Counted(saved.counted_bytes, saved.counted_tokens)


def _all_by_age(found: Reconciled) -> Iterable[tuple[SavedConversation, bool]]:
    """Those that live on, each with whether its pin holds, the longest idle first."""
    both = [(each, True) for each in found.pinned] + [(each, False) for each in found.unpinned]
    return sorted(both, key=lambda one: one[0].last_active_at_wall)
