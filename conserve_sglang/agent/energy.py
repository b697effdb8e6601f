"""The agent's meters: read once an interval, told by `GET /energy`.

A meter is not to be shared between threads and may block, so one thread of its own reads it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.agent.here import Here
from conserve_sglang.agent.meters import Users, meter_of
from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Meter, Reading

logger = logging.getLogger(__name__)

OpenMeter = Callable[[Here], tuple[Meter, Users]]


class EnergyPart:
    """Owns the meters of its host."""

    name = "energy"

    def __init__(
        self, here: Here, open_meter: OpenMeter = meter_of, wall: Callable[[], float] = time.time
    ) -> None:
        self._here = here
        self._open = open_meter
        self._wall = wall
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meter")
        self._meter: Meter | None = None
        self._users: Users = {}
        self._readings: Mapping[str, Reading] = {}
        self._read_at_wall_s = 0.0
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None

    def routes(self) -> Sequence[Route]:
        return (Route("/energy", self._energy),)

    def health(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {"meter": self._here.settings.meter, "devices": len(self._readings)}
        return told if self._problem is None else {**told, "problem": self._problem}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._meter, self._users = await loop.run_in_executor(self._thread, self._open, self._here)
        await self._read()
        self._task = loop.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._meter is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._meter.close)
        self._thread.shutdown()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._here.settings.interval_s)
            try:
                await self._read()
                self._problem = None
            except MeterError as error:
                if self._problem is None:
                    logger.error("the meter cannot be read: %s", error)
                self._problem = str(error)

    async def _read(self) -> None:
        assert self._meter is not None
        loop = asyncio.get_running_loop()
        self._readings = await loop.run_in_executor(self._thread, self._meter.read)
        self._read_at_wall_s = self._wall()

    async def _energy(self, request: Request) -> Response:
        """Everything since the agent's start."""
        return JSONResponse(
            {
                "host": self._here.host,
                "meter": self._here.settings.meter,
                "read_at": self._read_at_wall_s,
                "problem": self._problem,
                "devices": [self._device(reading) for reading in self._readings.values()],
            }
        )

    def _device(self, reading: Reading) -> dict[str, Any]:
        return {
            "id": reading.device_id,
            "joules": reading.joules,
            "watts": reading.watts,
            "origin": reading.origin.value,
            "source": reading.source,
            "period_s": reading.period_s,
            "workers": list(self._users.get(reading.device_id, ())),
        }
