"""The control port: what an operator or the launcher reads and changes."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.about import UNKNOWN_CONVERSATION, tell_elsewhere
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.conversations import KEY_BEGINS
from conserve_sglang.router.ports import PROBES, Subject, Told
from conserve_sglang.router.power import PowerTask
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.status import Probe, Status
from conserve_sglang.router.worker_endpoints import WorkerEndpoints
from conserve_sglang.serving.gate import STRANGER, Gate
from conserve_sglang.serving.problems import json_app
from conserve_sglang.telemetry.prometheus import CONTENT_TYPE, Exporter

NO_BUDGET = Problem(
    status=404,
    code="no_budget",
    message="No budget is kept here: the tier map has none, or has no energy read.",
)


class ControlEndpoints:
    """The handlers; they run in the router's own loop, so they may touch its state."""

    def __init__(
        self,
        brain: Brain,
        workers: WorkerEndpoints,
        status: Status,
        exporter: Exporter,
        power: PowerTask | None = None,
    ) -> None:
        self.workers = workers
        self._brain = brain
        self._status = status
        self._exporter = exporter
        self._power = power

    def probes(self) -> list[Route]:
        """What whoever watches over the router asks it."""
        tells = {
            Subject.HEALTH: self._status.health,
            Subject.READY: self._status.ready,
            Subject.LIVE: self._status.live,
        }
        return [Route(path.decode(), _probe(tells[about])) for path, about in PROBES.items()]

    async def metrics(self, request: Request) -> Response:
        return Response(self._exporter.text(), headers={"content-type": CONTENT_TYPE})

    async def power(self, request: Request) -> Response:
        """What the power controller sees and has moved."""
        if self._power is None:
            return _problem(NO_BUDGET)
        return JSONResponse(self._power.told())

    async def conversation(self, request: Request) -> Response:
        """An operator may see everyone's: by key, or by name with `?tenant=`; also those that
        another replica serves. Of one that is not there, the key that logs call it by."""
        name = str(request.path_params["id"])
        tenant = TenantId(request.query_params.get("tenant", DEFAULT_TENANT.tenant_id))
        table = self._brain.conversations
        conversation = table.by_key(name) or table.find(tenant, name.encode())
        body = None if conversation is None else self._status.conversation(conversation)
        if body is not None:
            return JSONResponse(body)
        sharing = self._brain.sharing
        is_key = name.startswith(KEY_BEGINS)
        key = ConversationId(name) if is_key else table.key_of(tenant, name.encode())
        if sharing is None:
            return _unknown(key)
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        tell_elsewhere(sharing, key, partial(_hear, told))
        answer = await told
        return _unknown(key) if answer.status == 404 else _response(answer)


def _probe(tell: Probe) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        status, body = tell(is_brief=getattr(request.state, STRANGER, False))
        return JSONResponse(body, status)

    return answer


def _hear(heard: "asyncio.Future[Told]", told: Told) -> None:
    if not heard.done():  # else who asked is gone
        heard.set_result(told)


def _response(told: Told) -> Response:
    after = {} if told.retry_after_s is None else {"retry-after": str(told.retry_after_s)}
    return Response(told.body, told.status, after, media_type=told.content_type.decode())


def _unknown(key: ConversationId) -> Response:
    body = {**msgspec.json.decode(UNKNOWN_CONVERSATION.to_json()), "key": key}
    return JSONResponse(body, UNKNOWN_CONVERSATION.status)


def _problem(problem: Problem) -> Response:
    return Response(problem.to_json(), problem.status, media_type="application/json")


def control_app(endpoints: ControlEndpoints, admin_key: str | None) -> ASGIApp:
    """The ASGI application of the control port; with a key, for those that have it."""
    routes = [
        *endpoints.probes(),
        Route("/metrics", endpoints.metrics),
        Route("/admin/power", endpoints.power),
        *endpoints.workers.routes(),
        Route("/v1/conversations/{id:path}", endpoints.conversation),
    ]
    app = json_app(routes)
    return app if admin_key is None else Gate(app, admin_key)
