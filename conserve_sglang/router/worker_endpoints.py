"""The control port's part that changes which workers there are and which of them take turns."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.status import Status
from conserve_sglang.tiermap.newcomer import read_newcomer

DEFAULT_WAIT_S = 60.0
MOST_WAIT_S = 3600.0
_TRUE = frozenset({"", "1", "true", "yes"})
Handler = Callable[[Request, Worker], Awaitable[Response]]


class WorkerEndpoints:
    """The handlers; they run in the router's own loop, so they may touch its state."""

    def __init__(self, tier_map: TierMap, fleet: Fleet, status: Status) -> None:
        self._tier_map = tier_map
        self._fleet = fleet
        self._status = status

    def routes(self) -> list[Route]:
        """What is served below `/admin/workers`."""
        one, of_worker = "/admin/workers/{id}", self._of_worker
        return [
            Route("/admin/workers", self.all),
            Route("/admin/workers", self.add, methods=["POST"]),
            Route(one, of_worker(self.one)),
            Route(one, of_worker(self.remove), methods=["DELETE"]),
            Route(f"{one}/drain", of_worker(self.drain), methods=["POST"]),
            Route(f"{one}/undrain", of_worker(self.undrain), methods=["POST"]),
            Route(f"{one}/lost", of_worker(self.lost), methods=["POST"]),
            Route(f"{one}/up", of_worker(self.up), methods=["POST"]),
        ]

    async def all(self, request: Request) -> Response:
        return JSONResponse({"workers": self._status.workers()})

    async def one(self, request: Request, worker: Worker) -> Response:
        return self._described(worker)

    async def add(self, request: Request) -> Response:
        """A worker joins. The same one again is no error; another of its name is."""
        workers = self._fleet.workers()
        try:
            present = [worker.plan for worker in workers]
            plan = read_newcomer(await request.body(), self._tier_map, present)
        except ConfigError as error:
            return _problem(400, "invalid_worker", str(error))
        worker = self._fleet.find(plan.worker_id)
        if worker is None:
            return self._described(self._fleet.add(plan), 201)
        there = worker.plan
        if (there.role, there.host, there.port) == (plan.role, plan.host, plan.port):
            return self._described(worker)
        message = (
            f"There is a worker {plan.worker_id!r} at {there.host}:{there.port} already."
            " Remove it first, or choose another id."
        )
        return _problem(409, "worker_exists", message)

    async def remove(self, request: Request, worker: Worker) -> Response:
        """A worker leaves once no turn runs there; with `?force=1` at once."""
        timeout_s = _timeout_s(request)
        if isinstance(timeout_s, Response):
            return timeout_s
        if request.query_params.get("force") in _TRUE:
            self._fleet.remove(worker)
        else:
            await asyncio.wait({self._fleet.remove_when_idle(worker)}, timeout=timeout_s)
        if self._fleet.find(worker.worker_id) is worker:
            return self._described(worker, 202)
        return JSONResponse({"id": worker.worker_id, "removed": True})

    async def drain(self, request: Request, worker: Worker) -> Response:
        """Give it no new turns and wait until none runs: 200 then, 202 if one still does.

        Draining goes on whatever is answered; asking again waits again.
        """
        timeout_s = _timeout_s(request)
        if isinstance(timeout_s, Response):
            return timeout_s
        self._fleet.drain(worker)
        waiting = asyncio.ensure_future(self._fleet.until_idle(worker))
        await asyncio.wait({waiting}, timeout=timeout_s)
        is_idle = waiting.done()
        waiting.cancel()
        return self._described(worker, 200 if is_idle else 202)

    async def undrain(self, request: Request, worker: Worker) -> Response:
        """Give it turns again."""
        self._fleet.undrain(worker)
        return self._described(worker)

    async def lost(self, request: Request, worker: Worker) -> Response:
        """The launcher saw the process die: do not wait for a connection to fail."""
        self._fleet.lose(worker, "reported lost")
        return self._described(worker)

    async def up(self, request: Request, worker: Worker) -> Response:
        """The launcher saw it answer: probe it now rather than at the next interval."""
        worker.wake.set()
        return self._described(worker)

    # inside

    def _of_worker(self, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """`handle` for the worker that the path names; 404 if there is none."""

        async def look_up(request: Request) -> Response:
            worker_id = request.path_params["id"]
            worker = self._fleet.find(WorkerId(worker_id))
            if worker is None:
                message = f"There is no worker {worker_id!r}; see GET /admin/workers."
                return _problem(404, "worker_not_found", message)
            return await handle(request, worker)

        return look_up

    def _described(self, worker: Worker, status: int = 200) -> Response:
        found: list[dict[str, Any]] = [
            entry for entry in self._status.workers() if entry["id"] == worker.worker_id
        ]
        headers = {"location": f"/admin/workers/{worker.worker_id}"} if status != 200 else None
        return JSONResponse(found[0], status, headers)


def _timeout_s(request: Request) -> float | Response:
    given = request.query_params.get("timeout_s")
    if given is None:
        return DEFAULT_WAIT_S
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s <= MOST_WAIT_S:
        message = f"timeout_s={given}: give seconds between 0 and {MOST_WAIT_S:g}"
        return _problem(400, "invalid_timeout", message)
    return timeout_s


def _problem(status: int, code: str, message: str) -> Response:
    problem = Problem(status=status, code=code, message=message)
    return Response(problem.to_json(), status, media_type="application/json")
