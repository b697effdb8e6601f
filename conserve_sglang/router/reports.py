"""The workers' own account of their load, asked for now and then; nothing is placed by it."""

import asyncio
import logging

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import WorkerReport
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.serving.ending import ended
from conserve_sglang.workers.probe import read_report

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0


class Reports:
    """The latest report of each worker that is up. `interval_s` 0: nobody is asked."""

    def __init__(self, fleet: Fleet, interval_s: float) -> None:
        self._fleet = fleet
        self._interval_s = interval_s
        self._latest: dict[WorkerId, WorkerReport] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        if self._interval_s > 0:
            self._task = asyncio.get_running_loop().create_task(self._ask_on())

    async def stop(self) -> None:
        """Ask no more."""
        task, self._task = self._task, None
        await ended(task)

    def latest(self) -> dict[WorkerId, WorkerReport]:
        """Of the workers that are up and told theirs."""
        return {
            worker_id: report
            for worker_id, report in self._latest.items()
            if self._fleet.is_up(worker_id)
        }

    async def _ask_on(self) -> None:
        while True:
            workers = [w for w in self._fleet.workers() if self._fleet.is_up(w.worker_id)]
            await asyncio.gather(*map(self._ask, workers))
            await asyncio.sleep(self._interval_s)

    async def _ask(self, worker: Worker) -> None:
        try:
            self._latest[worker.worker_id] = await read_report(worker.control, TIMEOUT_S)
        except WorkerError as error:
            self._latest.pop(worker.worker_id, None)
            logger.debug("worker %s did not report its load: %s", worker.worker_id, error)
