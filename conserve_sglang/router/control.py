"""The control port: what an operator or the launcher reads and changes."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.core.ids import TenantId, WorkerId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.about import UNKNOWN_CONVERSATION
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.fleet import Fleet, Worker
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.status import Status
from conserve_sglang.telemetry.prometheus import CONTENT_TYPE, Exporter


class ControlEndpoints:
    """The handlers; they run in the router's own loop, so they may touch its state."""

    def __init__(self, brain: Brain, fleet: Fleet, status: Status, exporter: Exporter) -> None:
        self._brain = brain
        self._fleet = fleet
        self._status = status
        self._exporter = exporter

    async def health(self, request: Request) -> Response:
        status, body = self._status.health()
        return JSONResponse(body, status)

    async def metrics(self, request: Request) -> Response:
        return Response(self._exporter.text(), headers={"content-type": CONTENT_TYPE})

    async def workers(self, request: Request) -> Response:
        return JSONResponse({"workers": self._status.workers()})

    async def worker_lost(self, request: Request) -> Response:
        """The launcher saw the process die: do not wait for a connection to fail."""
        worker = self._worker(request)
        if worker is None:
            return _unknown_worker(request)
        self._fleet.lose(worker, "reported lost")
        return self._described(worker)

    async def worker_up(self, request: Request) -> Response:
        """The launcher saw it answer: probe it now rather than at the next interval."""
        worker = self._worker(request)
        if worker is None:
            return _unknown_worker(request)
        worker.wake.set()
        return self._described(worker)

    async def conversation(self, request: Request) -> Response:
        """An operator may see everyone's: by key, or by name with `?tenant=`."""
        name = str(request.path_params["id"])
        tenant = TenantId(request.query_params.get("tenant", DEFAULT_TENANT.tenant_id))
        table = self._brain.conversations
        conversation = table.by_key(name) or table.find(tenant, name.encode())
        body = None if conversation is None else self._status.conversation(conversation)
        return _problem(UNKNOWN_CONVERSATION) if body is None else JSONResponse(body)

    def _worker(self, request: Request) -> Worker | None:
        worker_id = WorkerId(request.path_params["id"])
        known = {worker.worker_id: worker for worker in self._fleet.workers()}
        return known.get(worker_id)

    def _described(self, worker: Worker) -> Response:
        found: list[dict[str, Any]] = [
            entry for entry in self._status.workers() if entry["id"] == worker.worker_id
        ]
        return JSONResponse(found[0])


def _problem(problem: Problem) -> Response:
    return Response(problem.to_json(), problem.status, media_type="application/json")


def _unknown_worker(request: Request) -> Response:
    message = f"The tier map has no worker {request.path_params['id']!r}; see GET /admin/workers."
    return _problem(Problem(status=404, code="worker_not_found", message=message))


def control_app(endpoints: ControlEndpoints) -> Starlette:
    """The ASGI application of the control port."""
    return Starlette(
        routes=[
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            Route("/admin/workers", endpoints.workers),
            Route("/admin/workers/{id}/lost", endpoints.worker_lost, methods=["POST"]),
            Route("/admin/workers/{id}/up", endpoints.worker_up, methods=["POST"]),
            Route("/v1/conversations/{id:path}", endpoints.conversation),
        ]
    )
