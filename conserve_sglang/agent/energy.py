"""The agent's meters and books: read once an interval, told by `GET /energy`.

A meter is not to be shared between threads and may block, so one thread of its own reads it.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.agent.here import Here
from conserve_sglang.agent.ledger import Ledger
from conserve_sglang.agent.meters import Metered, OpenMeter, meter_of
from conserve_sglang.agent.tail import PhaseTail
from conserve_sglang.core.errors import MeterError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.energy.meter import Reading, windows
from conserve_sglang.serving.ending import ended

logger = logging.getLogger(__name__)


class EnergyPart:
    """Owns the meters of its host, reads its workers' phase logs, and keeps the books."""

    name = "energy"

    def __init__(
        self,
        here: Here,
        open_meter: OpenMeter = meter_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._here = here
        self._open = open_meter
        self._clock = clock  # that of the phase logs
        self._incarnation = uuid.uuid4().hex
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meter")
        self._metered: Metered | None = None
        self._ledger: Ledger
        self._tails = {
            worker.worker_id: PhaseTail(here.phase_log(worker)) for worker in here.workers
        }
        self._readings: Mapping[str, Reading] = {}
        self._read_at_s = 0.0
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._stepping = asyncio.Lock()

    def routes(self) -> Sequence[Route]:
        return (Route("/energy", self._energy),)

    def health(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"meter": self._here.settings.meter, "devices": len(self._readings)}
        if self._metered is not None and self._metered.unmeasured:
            told["unmeasured"] = list(self._metered.unmeasured)
        return told if self._problem is None else {**told, "problem": self._problem}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        metered = await loop.run_in_executor(self._thread, self._open, self._here)
        self._metered = metered
        joules_of = None if metered.model is None else metered.model.joules
        self._ledger = Ledger(metered.users, metered.predictors, metered.idle_w, joules_of)
        self._readings = await loop.run_in_executor(self._thread, metered.read)
        self._read_at_s = self._clock()
        self._ledger.settled_to_s = self._read_at_s
        self._task = loop.create_task(self._watch())

    async def stop(self) -> None:
        await ended(self._task)
        loop = asyncio.get_running_loop()
        if self._metered is not None:
            await loop.run_in_executor(self._thread, self._metered.meter.close)
        self._thread.shutdown()
        for tail in self._tails.values():
            tail.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._here.settings.interval_s)
            await self._try_step()

    async def _try_step(self) -> None:
        try:
            async with self._stepping:
                await self._step()
            self._problem = None
        except MeterError as error:
            if self._problem is None:
                logger.error("the meter cannot be read: %s", error)
            self._problem = str(error)
        except Exception:
            logger.exception("energy could not be settled; the next interval tries again")
            self._problem = "energy could not be settled; the agent's log has the reason"

    async def _step(self) -> None:
        """Hear what was done, read what it took, and settle what can be."""
        metered, loop = self._metered, asyncio.get_running_loop()
        assert metered is not None
        self._hear(metered)
        readings = await loop.run_in_executor(self._thread, metered.read)
        now = self._clock()
        used = windows(self._readings, readings)
        self._ledger.measured(
            self._read_at_s, now, {name: (each.joules, each.origin) for name, each in used.items()}
        )
        self._readings, self._read_at_s = readings, now
        self._ledger.settle(now)

    def _hear(self, metered: Metered) -> None:
        for worker_id, tail in self._tails.items():
            for entry in tail.entries():
                span = self._ledger.hear(worker_id, entry)
                if span is not None and metered.model is not None:
                    for device_id, workers in metered.users.items():
                        if worker_id in workers:
                            metered.model.worked(device_id, span)

    async def _energy(self, request: Request) -> Response:
        """Counters since the agent's start, and what was billed to turns after settling `since`;
        with `fresh` the meters are read for it."""
        if "fresh" in request.query_params:
            await self._try_step()
        try:
            since = int(request.query_params.get("since", "0"))
        except ValueError:
            message = "since is the number of a settling, as a whole number"
            return JSONResponse({"error": {"message": message}}, 400)
        return JSONResponse(self.told(since))

    def told(self, since: int = 0) -> dict[str, Any]:
        """The answer to `GET /energy?since=`."""
        ledger, metered = self._ledger, self._metered
        assert metered is not None
        rows, has_forgotten = ledger.rows_since(since)
        predictors = [each for each in metered.predictors.values() if each is not None]
        return {
            "host": self._here.host,
            "incarnation": self._incarnation,
            "meter": self._here.settings.meter,
            "problem": self._problem,
            "now_s": self._clock(),
            "settling": ledger.told_to(rows),
            "settled_age_s": max(0.0, self._clock() - ledger.settled_to_s),
            "devices": [self._device(each, metered) for each in self._readings.values()],
            "counters": [
                [c.worker, self._tier(c.worker), c.phase, c.origin, c.split, joules]
                for c, joules in ledger.counters.items()
            ],
            "turns": [
                [r.conversation, r.turn, r.counter.worker, r.counter.phase, r.counter.origin,
                 r.counter.split, r.joules]
                for r in rows
            ],
            "unmeasured": list(metered.unmeasured),
            "has_forgotten": has_forgotten,
            "late_s": ledger.late_s,
            "refused_windows": ledger.num_refused_windows,
            "lost_files": sum(tail.num_lost_files for tail in self._tails.values()),
            "outside_profile": sum(each.num_outside for each in predictors),
        }  # fmt: skip

    def _tier(self, worker_id: WorkerId) -> str:
        return next(w.tier for w in self._here.workers if w.worker_id == worker_id)

    def _device(self, reading: Reading, metered: Metered) -> dict[str, Any]:
        device = next(d for d in metered.meter.devices() if d.device_id == reading.device_id)
        return {
            "id": reading.device_id,
            "kind": device.kind.value,
            "name": device.name,
            "at_s": reading.at_s,
            "joules": reading.joules,
            "watts": reading.watts,
            "idle_w": self._ledger.idle_w(reading.device_id),
            "origin": reading.origin.value,
            "source": reading.source,
            "period_s": reading.period_s,
            "workers": list(metered.users.get(reading.device_id, ())),
        }
