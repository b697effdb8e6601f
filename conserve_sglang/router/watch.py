"""Watches workers: probes each one, meets it when it answers, and asks the silent ones again."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any, Protocol

from conserve_sglang.core.errors import NotCapable, WorkerError
from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.tier import Model
from conserve_sglang.router.worker import Worker, WorkerState
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.probe import (
    WorkerFacts,
    check_model,
    check_role,
    is_ready,
    is_scheduler_well,
    read_facts,
)

logger = logging.getLogger(__name__)

# A worker that was lost to us alone may still run turns; it sees in seconds that we left them.
FLUSH_ATTEMPTS = 12
FLUSH_PAUSE_S = 0.5
HANG_PROBES = 2


class WatchOwner(Protocol):
    """Whoever keeps the workers, as its watch knows it."""

    def workers(self) -> tuple[Worker, ...]:
        """All workers there are now."""
        ...

    def met(self, worker: Worker, facts: WorkerFacts) -> None:
        """A worker that was not up answered, and can serve its role."""
        ...

    def answered_probe(self, worker: Worker) -> None:
        """A worker that is up answered a probe."""
        ...

    def lose(self, worker: Worker, reason: str) -> None:
        """A worker is gone."""
        ...

    def refuse(self, worker: Worker, reason: str) -> None:
        """A worker answers but cannot serve its role."""
        ...


class Watch:
    """The probing of all workers of a fleet."""

    def __init__(
        self, owner: WatchOwner, health: HealthSettings, model: Model, *, needs_plugin: bool
    ) -> None:
        self._owner = owner
        self._health = health
        self._model = model
        self._needs_plugin = needs_plugin

    async def probe_for_ever(self, worker: Worker) -> None:
        """Probe one worker at each interval, and at once when it is woken."""
        while True:
            worker.wake.clear()
            try:
                await self._probe(worker)
            except NotCapable as error:
                self._owner.refuse(worker, str(error))
            except WorkerError as error:
                self._miss(worker, str(error))
            except Exception as error:
                logger.exception("the probe of worker %s failed", worker.worker_id)
                self._miss(worker, f"its probe failed in the router: {error!r}")
            worker.was_probed.set()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker.wake.wait(), self._health.probe_interval_s)

    async def ask_the_silent(self) -> None:
        """Look for workers from which nothing comes although turns wait, and ask those again.

        A frozen process and a starved one look alike from outside: the kernel accepts connections
        and acknowledges bytes for both. So only time tells, and any byte from it, on whatever
        connection, is a sign of life. A host that is gone acknowledges nothing; that is the
        kernel's to notice (see `ConnectionPool`).
        """
        loop = asyncio.get_running_loop()
        health = self._health
        asked: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(min(health.probe_interval_s, health.stall_s / 4))
                for worker in self._owner.workers():
                    for question in self._questions(worker, loop.time()):
                        task = loop.create_task(question)
                        asked.add(task)
                        task.add_done_callback(asked.discard)
        finally:
            for task in asked:
                task.cancel()

    def _questions(self, worker: Worker, now: float) -> Iterator[Coroutine[Any, Any, None]]:
        """What there is to be asked of a worker now, beside its probes."""
        if not worker.is_up:
            return
        is_silent = worker.silent_s(now) >= self._health.stall_s
        if is_silent and not worker.is_asked_again:
            worker.is_asked_again = True
            yield self._ask_again(worker)
        if now - worker.progress_at_s >= self._health.hang_s and not worker.is_examined:
            worker.is_examined = True
            yield self._ask_scheduler(worker)

    async def _ask_again(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        silent_s = since_s - worker.heard_at_s
        timeout_s = self._health.stall_probe_timeout_s
        anew = worker.new_pool(connect_timeout_s=timeout_s)
        try:
            await is_ready(anew, timeout_s)
        except WorkerError as error:
            worker.silent_s(loop.time())
            if worker.is_up and worker.heard_at_s < since_s:
                self._owner.lose(
                    worker, f"silent for {silent_s:.1f} s while turns waited, then: {error}"
                )
        else:
            worker.heard_at_s = loop.time()
        finally:
            worker.is_asked_again = False
            anew.close()

    async def _ask_scheduler(self, worker: Worker) -> None:
        """Its HTTP server answers, but no turn has come on for long: is there anything behind?"""
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        waited_s = since_s - worker.progress_at_s
        try:
            for _ in range(HANG_PROBES):
                with suppress(WorkerError):
                    if await is_scheduler_well(worker.control, self._health.hang_probe_timeout_s):
                        worker.progress_at_s = loop.time()
                        return
                worker.silent_s(loop.time())
                if not worker.is_up or worker.progress_at_s >= since_s:
                    return
            self._owner.lose(
                worker,
                f"it answers, but no turn has come on for {waited_s:.1f} s, and its scheduler did"
                f" not answer GET /health {HANG_PROBES} times",
            )
        finally:
            worker.is_examined = False

    async def _probe(self, worker: Worker) -> None:
        ready = await is_ready(worker.control, self._health.probe_timeout_s)
        worker.heard_at_s = asyncio.get_running_loop().time()
        if not ready:
            self._miss(worker, "it answers but takes no requests")
            return
        worker.num_missed_probes = 0
        if worker.is_up:
            self._owner.answered_probe(worker)
        else:
            await self._meet(worker)

    async def _meet(self, worker: Worker) -> None:
        facts = await read_facts(worker.control)
        check_role(facts, worker.plan.role, needs_plugin=self._needs_plugin)
        check_model(facts, self._model)
        if worker.was_met_before and worker.can_decode:
            await self._empty(worker)
        worker.was_met_before = True
        worker.progress_at_s = asyncio.get_running_loop().time()
        self._owner.met(worker, facts)

    async def _empty(self, worker: Worker) -> None:
        """Have a worker that may not have restarted let go of what the dispatcher forgot."""
        status = 0
        for _ in range(FLUSH_ATTEMPTS):
            status, _ = await fetch(
                worker.control,
                "POST",
                "/flush_cache",
                body=b"{}",
                timeout_s=self._health.probe_timeout_s,
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
        if not worker.is_up:
            if worker.state is not WorkerState.LOST:
                worker.state = WorkerState.UNKNOWN
            if worker.reason != reason:
                logger.info("worker %s is not up: %s", worker.worker_id, reason)
            worker.reason = reason
            return
        worker.num_missed_probes += 1
        if worker.num_missed_probes >= self._health.max_missed_probes:
            missed = f"{worker.num_missed_probes} probes failed, the last: {reason}"
            self._owner.lose(worker, missed)
