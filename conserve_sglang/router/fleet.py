"""The workers behind the router: met, watched, lost, drained, added and removed."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Set
from contextlib import suppress
from typing import Any

from conserve_sglang.core.ids import ConversationId, WorkerId
from conserve_sglang.core.tier import TierMap, WorkerPlan
from conserve_sglang.core.worker import WorkerSpec
from conserve_sglang.dispatch import (
    Event,
    WorkerAdmitted,
    WorkerDraining,
    WorkerLost,
    WorkerRemoved,
    WorkerUp,
)
from conserve_sglang.policy.api import PhaseOneCause
from conserve_sglang.router.books import Books
from conserve_sglang.router.release import close_sessions
from conserve_sglang.router.watch import Watch
from conserve_sglang.router.worker import Admission, Worker, WorkerState
from conserve_sglang.telemetry.logs import told
from conserve_sglang.workers.access import PLAIN, WorkerAccess
from conserve_sglang.workers.breaker import CircuitBreaker
from conserve_sglang.workers.probe import WorkerFacts

__all__ = ["Fleet", "Worker", "WorkerState"]

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.05
# Policies under which decoders get no local turns, and so need no plugin.
_WITHOUT_LOCAL_TURNS = frozenset({"stock-pd"})


class Fleet:
    """Watches every worker and tells the dispatcher who takes turns.

    `tell` and `books` are set before `start`.
    """

    def __init__(
        self,
        tier_map: TierMap,
        *,
        trusts_decoders: bool = False,
        access: WorkerAccess = PLAIN,
    ) -> None:
        self._access = access
        self._health = tier_map.router.health
        self._rng = random.Random()
        needs_plugin = not (trusts_decoders or tier_map.policy.name in _WITHOUT_LOCAL_TURNS)
        self._watch = Watch(self, self._health, tier_map.model, needs_plugin=needs_plugin)
        self._workers = {plan.worker_id: self._new(plan) for plan in tier_map.workers}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_running = False
        self.tell: Callable[[Event], None] = lambda event: None
        self.books: Books
        self.on_met: Callable[[Worker], None] = lambda worker: None  # after it was told
        self.num_decoders_up = 0

    def workers(self) -> tuple[Worker, ...]:
        """All workers, in the tier map's order, then in that of their adding."""
        return tuple(self._workers.values())

    def worker(self, worker_id: WorkerId) -> Worker:
        """A worker by its name; KeyError if there is none of that name."""
        return self._workers[worker_id]

    def find(self, worker_id: WorkerId) -> Worker | None:
        """A worker by its name, or None."""
        return self._workers.get(worker_id)

    def is_up(self, worker_id: WorkerId) -> bool:
        """Whether a worker is there and was not lost."""
        worker = self._workers.get(worker_id)
        return worker is not None and worker.is_up

    def is_removed(self, worker_id: WorkerId) -> bool:
        """Whether a worker leaves on an operator's word, or is known no more."""
        worker = self._workers.get(worker_id)
        return worker is None or worker.state is WorkerState.REMOVED

    @property
    def may_decode(self) -> bool:
        """Whether a decoder is up or may come up, so that waiting makes sense."""
        return self.num_decoders_up > 0 or any(
            worker.can_decode and worker.state is not WorkerState.REFUSED
            for worker in self._workers.values()
        )

    def start(self) -> None:
        """Begin watching."""
        self._is_running = True
        self._spawn(self._watch.ask_the_silent())
        for worker in self._workers.values():
            worker.watching = self._spawn(self._watch.probe_for_ever(worker))

    async def stop(self) -> None:
        """End watching and close every connection."""
        self._is_running = False
        while self._tasks:
            # Again and again: before Python 3.12 wait_for can swallow a cancellation.
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(tuple(self._tasks), timeout=0.5)
        for worker in self._workers.values():
            worker.close()

    async def until_probed(self, worker_ids: Set[str], timeout_s: float) -> None:
        """Wait until each of these workers has been probed once, but not longer than that."""
        waits = [w.was_probed.wait() for w in self._workers.values() if w.worker_id in worker_ids]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waits), timeout_s)

    # who is there

    def add(self, plan: WorkerPlan) -> Worker:
        """A worker joins; it is given turns once it was met. Its name must not be taken."""
        worker = self._workers[plan.worker_id] = self._new(plan)
        where = f"{plan.host}:{plan.port}"
        logger.info("worker %s added at %s", plan.worker_id, where, extra=_told("added", worker))
        if self._is_running:
            worker.watching = self._spawn(self._watch.probe_for_ever(worker))
        return worker

    def remove(self, worker: Worker) -> None:
        """A worker leaves at once; turns that still run there go on elsewhere."""
        if self._workers.get(worker.worker_id) is not worker:
            return
        cause = PhaseOneCause.DRAINED if worker.is_draining else PhaseOneCause.WORKER_REMOVED
        was_up = self._stands(worker, WorkerState.REMOVED, "removed on the control port")
        logger.info("worker %s removed", worker.worker_id, extra=_told("removed", worker))
        if was_up:
            self._void(worker, cause)
        if worker.watching is not None:
            worker.watching.cancel()
        del self._workers[worker.worker_id]
        self.tell(WorkerRemoved(worker_id=worker.worker_id))
        worker.close()

    def remove_when_idle(self, worker: Worker) -> asyncio.Task[None]:
        """A worker leaves as soon as no turn runs there, unless it is undrained before."""
        self.drain(worker)
        if worker.leaving is None:
            worker.leaving = self._spawn(self._leave(worker))
        return worker.leaving

    async def _leave(self, worker: Worker) -> None:
        await self.until_idle(worker)
        self.remove(worker)

    def drain(self, worker: Worker) -> None:
        """Give a worker no new turns, until `undrain`, also when it goes and comes back."""
        is_new, worker.is_draining = not worker.is_draining, True
        if is_new:
            logger.info("worker %s is draining", worker.worker_id, extra=_told("draining", worker))
        self._admit(worker)

    def undrain(self, worker: Worker) -> None:
        """Give a worker turns again."""
        was_draining, worker.is_draining = worker.is_draining, False
        if was_draining:
            logger.info(
                "worker %s drains no more", worker.worker_id, extra=_told("undrained", worker)
            )
        if worker.leaving is not None:
            worker.leaving.cancel()
            worker.leaving = None
        self._admit(worker)

    async def until_idle(self, worker: Worker) -> None:
        """Wait until no turn runs on a worker, or the fleet is stopped."""
        while self._is_running and self.books.num_running(worker.worker_id):
            await asyncio.sleep(IDLE_POLL_S)

    # what is heard of workers

    def met(self, worker: Worker, facts: WorkerFacts) -> None:
        """A worker answered and can serve its role: it is up, and empty."""
        if self._workers.get(worker.worker_id) is not worker:
            return
        worker.state = WorkerState.UP
        worker.reason = ""
        worker.served_name = facts.served_name
        worker.incarnation = facts.incarnation
        worker.can_continue = facts.can_continue
        worker.serves_local_turns = facts.serves_local_turns
        worker.kv_bytes_per_token = facts.kv_bytes_per_token
        worker.breaker.reset()
        self.num_decoders_up += worker.can_decode
        logger.info(
            "worker %s up: %s, %d KV tokens",
            worker.worker_id,
            facts.mode,
            facts.kv_capacity_tokens,
            extra=_told("up", worker),
        )
        spec = WorkerSpec(
            worker_id=worker.worker_id,
            role=worker.plan.role,
            tier=worker.plan.tier,
            kv_capacity_tokens=facts.kv_capacity_tokens,
            max_context_tokens=worker.plan.max_context_tokens,
        )
        draining = worker.is_draining
        worker.admission = Admission.NONE_DRAINING if draining else Admission.ANY
        self.tell(WorkerUp(spec=spec))
        if worker.is_draining:
            self.tell(WorkerDraining(worker_id=worker.worker_id))
        self.on_met(worker)

    def lose(self, worker: Worker, reason: str) -> None:
        """A worker is gone, and the KV on it. It is met again when it answers a probe."""
        if self._stands(worker, WorkerState.LOST, reason):
            logger.warning(
                "worker %s lost: %s", worker.worker_id, reason, extra=_told("lost", worker)
            )
            self._void(worker, PhaseOneCause.DECODER_LOST)

    def refuse(self, worker: Worker, reason: str) -> None:
        """A worker answers but cannot serve its role."""
        if worker.is_up:
            self.lose(worker, reason)
        if worker.state is not WorkerState.REFUSED or worker.reason != reason:
            logger.error(
                "worker %s refused: %s", worker.worker_id, reason, extra=_told("refused", worker)
            )
        worker.state = WorkerState.REFUSED
        worker.reason = reason

    def answered_probe(self, worker: Worker) -> None:
        """A worker that is up answered a probe: its circuit breaker may go on."""
        now = asyncio.get_running_loop().time()
        self._count_answers(worker)
        worker.breaker.pass_time(now)
        if worker.breaker.may_probe(now):
            worker.breaker.half_open()
            logger.info("worker %s is given a few turns on trial", worker.worker_id)
        self._admit(worker)

    def failed(self, worker_id: WorkerId, why: str) -> None:
        """A turn failed through a worker that is up."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.is_up:
            return
        self._count_answers(worker)
        if worker.breaker.failed(asyncio.get_running_loop().time(), why):
            logger.warning(
                "worker %s gets no turns: %s",
                worker_id,
                worker.breaker.reason,
                extra=_told("breaker_open", worker),
            )
            self._admit(worker)

    def connection_refused(self, worker_id: WorkerId) -> None:
        """Another process of ours found that a worker does not accept connections."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._connection_refused(worker)

    # what workers are told

    def release(self, worker_id: WorkerId, conversation_id: ConversationId) -> None:
        """Let a worker forget a conversation; nobody waits for it."""
        if self.is_up(worker_id):
            self._spawn(close_sessions(self._workers[worker_id], [conversation_id]))

    def release_all(self, worker_id: WorkerId, conversations: list[ConversationId]) -> None:
        """Let a worker forget many conversations, one after the other."""
        if self.is_up(worker_id):
            self._spawn(close_sessions(self._workers[worker_id], conversations))

    # inside

    def _stands(self, worker: Worker, state: WorkerState, reason: str) -> bool:
        """Note how a worker stands that is not up any more; whether it was up until now."""
        was_up = worker.is_up
        worker.state, worker.reason = state, reason
        worker.num_missed_probes = 0
        return was_up

    def _void(self, worker: Worker, cause: PhaseOneCause) -> None:
        """The KV on a worker that was up is not to be had any more; its turns go elsewhere."""
        self.num_decoders_up -= worker.can_decode
        self.tell(WorkerLost(worker_id=worker.worker_id, cause=cause))
        worker.close()

    def _new(self, plan: WorkerPlan) -> Worker:
        return Worker(
            plan,
            self._health,
            CircuitBreaker(self._health.breaker, self._rng),
            self._connection_refused,
            self._access,
        )

    def _connection_refused(self, worker: Worker) -> None:
        if worker.is_up:  # of one that is not, each probe finds the same
            self.lose(worker, "it does not accept connections")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _count_answers(self, worker: Worker) -> None:
        """Take in what the worker answered since the last look; none of it is counted per turn."""
        answered = self.books.num_answered(worker.worker_id)
        more, worker.num_answers_seen = answered - worker.num_answers_seen, answered
        if more and worker.breaker.answered(more):
            logger.info("worker %s answered its trial turns", worker.worker_id)

    def _admit(self, worker: Worker) -> None:
        """Tell the dispatcher which turns a worker is given, if that has changed."""
        wanted = worker.wanted_admission
        if not worker.is_up or (wanted is worker.admission and wanted is not Admission.TRIAL):
            return
        worker.admission = wanted
        worker_id = worker.worker_id
        if wanted is Admission.NONE_DRAINING:
            self.tell(WorkerDraining(worker_id=worker_id))
        elif wanted is Admission.NONE_FAILING:
            cause = PhaseOneCause.DECODER_LOST
            self.tell(WorkerDraining(worker_id=worker_id, cause=cause))
        elif wanted is Admission.TRIAL:
            left = worker.breaker.num_trials_left - self.books.num_running(worker_id)
            self.tell(WorkerAdmitted(worker_id=worker_id, num_turns=max(0, left)))
        else:
            self.tell(WorkerAdmitted(worker_id=worker_id))


def _told(event: str, worker: Worker) -> dict[str, Any]:
    """For the JSON log: what became of a worker, and what it has to say for itself."""
    return told(f"worker_{event}", worker=worker.worker_id, **worker.standing)
