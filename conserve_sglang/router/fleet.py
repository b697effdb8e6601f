"""The workers of the tier map: met, probed, lost and met again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any

from conserve_sglang.core.errors import NotCapable, WorkerError
from conserve_sglang.core.ids import ConversationId, WorkerId
from conserve_sglang.core.tier import TierMap, WorkerPlan
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import Event, WorkerLost, WorkerUp
from conserve_sglang.workers.bootstrap import prefiller_fields
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import check_model, check_role, is_ready, read_facts

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0  # a busy server on a busy CPU was seen to take that long
MAX_MISSED_PROBES = 3  # timeouts in a row; a refused connection counts at once
# A worker that was lost to us alone may still run turns; it sees in seconds that we left them.
FLUSH_ATTEMPTS = 12
FLUSH_PAUSE_S = 0.5
# Policies under which decoders get no local turns, and so need no plugin.
_WITHOUT_LOCAL_TURNS = frozenset({"stock-pd"})


class WorkerState(Enum):
    """How a worker stands with the router."""

    UNKNOWN = "unknown"
    UP = "up"
    LOST = "lost"
    REFUSED = "refused"


class Worker:
    """One worker: its plan, its connections, and how it stands."""

    def __init__(
        self,
        plan: WorkerPlan,
        on_refused: Callable[["Worker"], None],
        api_key: str | None = None,
    ) -> None:
        self.plan = plan
        self.worker_id = plan.worker_id
        self.pool = ConnectionPool(
            plan.host, plan.port, api_key=api_key, on_refused=lambda: on_refused(self)
        )
        self.prefiller_fields = prefiller_fields(plan.host, plan.bootstrap_port or 0)
        self.state = WorkerState.UNKNOWN
        self.reason = "not met yet"
        self.served_name = ""
        self.incarnation: str | None = None
        self.kv_bytes_per_token: float | None = None
        self.num_missed_probes = 0
        self.was_met_before = False
        self.wake = asyncio.Event()

    @property
    def can_decode(self) -> bool:
        """Whether turns are answered by it."""
        return self.plan.role is not Role.PREFILL


class Fleet:
    """Probes every worker and tells the dispatcher who is up; `tell` is set before `start`."""

    def __init__(
        self,
        tier_map: TierMap,
        *,
        trusts_decoders: bool = False,
        worker_api_key: str | None = None,
    ) -> None:
        self._needs_plugin = not (trusts_decoders or tier_map.policy.name in _WITHOUT_LOCAL_TURNS)
        self._model = tier_map.model
        self._interval_s = tier_map.router.health.probe_interval_s
        self._workers = {
            plan.worker_id: Worker(plan, self._connection_refused, worker_api_key)
            for plan in tier_map.workers
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self.tell: Callable[[Event], None] = lambda event: None
        self.num_decoders_up = 0
        self._is_stopping = False

    def workers(self) -> tuple[Worker, ...]:
        """All workers, in the tier map's order."""
        return tuple(self._workers.values())

    def worker(self, worker_id: WorkerId) -> Worker:
        """A worker by its name; KeyError if the tier map has none of that name."""
        return self._workers[worker_id]

    def is_up(self, worker_id: WorkerId) -> bool:
        """Whether a worker is given turns."""
        return self._workers[worker_id].state is WorkerState.UP

    def start(self) -> None:
        """Begin probing."""
        for worker in self._workers.values():
            self._spawn(self._watch(worker))

    async def stop(self) -> None:
        """End probing and close every connection."""
        self._is_stopping = True
        while self._tasks:
            # Again and again: before Python 3.12 wait_for can swallow a cancellation.
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(tuple(self._tasks), timeout=0.5)
        for worker in self._workers.values():
            worker.pool.close()

    def lose(self, worker: Worker, reason: str) -> None:
        """A worker is gone, and the KV on it. It is met again when it answers a probe."""
        was_up = worker.state is WorkerState.UP
        worker.state = WorkerState.LOST
        worker.reason = reason
        worker.num_missed_probes = 0
        if was_up:
            logger.warning("worker %s lost: %s", worker.worker_id, reason)
            self.num_decoders_up -= worker.can_decode
            self.tell(WorkerLost(worker_id=worker.worker_id))
            worker.pool.close()

    def release(self, worker_id: WorkerId, conversation_id: ConversationId) -> None:
        """Let a worker forget a conversation; nobody waits for it."""
        if self.is_up(worker_id):
            self._spawn(self._close_session(self._workers[worker_id], conversation_id))

    async def _close_session(self, worker: Worker, conversation_id: ConversationId) -> None:
        body = b'{"session_id":"%b"}' % conversation_id.encode()
        try:
            status, _ = await fetch(worker.pool, "POST", "/close_session", body=body)
        except WorkerError as error:
            logger.warning("%s not released on %s: %s", conversation_id, worker.worker_id, error)
            return
        level = logging.DEBUG if status == 200 else logging.WARNING
        logger.log(level, "%s released on %s: %d", conversation_id, worker.worker_id, status)

    def _connection_refused(self, worker: Worker) -> None:
        self.lose(worker, "it does not accept connections")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, worker: Worker) -> None:
        while not self._is_stopping:
            worker.wake.clear()
            try:
                await self._probe(worker)
            except NotCapable as error:
                self._refuse(worker, str(error))
            except WorkerError as error:
                self._miss(worker, str(error))
            except Exception as error:
                logger.exception("the probe of worker %s failed", worker.worker_id)
                self._miss(worker, f"its probe failed in the router: {error!r}")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker.wake.wait(), self._interval_s)

    async def _probe(self, worker: Worker) -> None:
        ready = await is_ready(worker.pool, PROBE_TIMEOUT_S)
        if not ready:
            self._miss(worker, "it answers but takes no requests")
            return
        worker.num_missed_probes = 0
        if worker.state is not WorkerState.UP:
            await self._meet(worker)

    async def _meet(self, worker: Worker) -> None:
        facts = await read_facts(worker.pool)
        check_role(facts, worker.plan.role, needs_plugin=self._needs_plugin)
        check_model(facts, self._model)
        if worker.was_met_before and worker.can_decode:
            await self._empty(worker)
        worker.was_met_before = True
        worker.state = WorkerState.UP
        worker.reason = ""
        worker.served_name = facts.served_name
        worker.incarnation = facts.incarnation
        worker.kv_bytes_per_token = facts.kv_bytes_per_token
        self.num_decoders_up += worker.can_decode
        logger.info(
            "worker %s up: %s, %d KV tokens", worker.worker_id, facts.mode, facts.kv_capacity_tokens
        )
        spec = WorkerSpec(
            worker_id=worker.worker_id,
            role=worker.plan.role,
            tier=worker.plan.tier,
            kv_capacity_tokens=facts.kv_capacity_tokens,
        )
        self.tell(WorkerUp(spec=spec))

    async def _empty(self, worker: Worker) -> None:
        """Have a worker that may not have restarted let go of what the dispatcher forgot."""
        status = 0
        for _ in range(FLUSH_ATTEMPTS):
            status, _ = await fetch(
                worker.pool, "POST", "/flush_cache", body=b"{}", timeout_s=PROBE_TIMEOUT_S
            )
            if status != 400:  # SGLang's word for busy
                break
            await asyncio.sleep(FLUSH_PAUSE_S)
        if status != 200:
            logger.warning(
                "worker %s is back but did not flush its cache (POST /flush_cache answered %d);"
                " sessions of before its loss may keep room there",
                worker.worker_id,
                status,
            )

    def _miss(self, worker: Worker, reason: str) -> None:
        if worker.state is not WorkerState.UP:
            if worker.state is not WorkerState.LOST:
                worker.state = WorkerState.UNKNOWN
            worker.reason = reason
            return
        worker.num_missed_probes += 1
        if worker.num_missed_probes >= MAX_MISSED_PROBES:
            self.lose(worker, f"{worker.num_missed_probes} probes failed, the last: {reason}")

    def _refuse(self, worker: Worker, reason: str) -> None:
        if worker.state is WorkerState.UP:
            self.lose(worker, reason)
        if worker.state is not WorkerState.REFUSED or worker.reason != reason:
            logger.error("worker %s refused: %s", worker.worker_id, reason)
        worker.state = WorkerState.REFUSED
        worker.reason = reason
