"""The agent as a running service: composed of its parts, listening, and stopped in order."""

import asyncio
import logging
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from conserve_sglang.agent.caps import CapsPart
from conserve_sglang.agent.energy import EnergyPart
from conserve_sglang.agent.here import Here
from conserve_sglang.agent.part import Part
from conserve_sglang.serving.control_server import ControlServer
from conserve_sglang.serving.gate import STRANGER, Gate
from conserve_sglang.serving.listening import bound
from conserve_sglang.serving.problems import json_app

logger = logging.getLogger(__name__)

LOOPBACK_HOSTS = frozenset({"localhost", "::1"})


def compose(here: Here, *, is_gated: bool = False) -> tuple[Part, ...]:
    """The parts of an agent, which asks for the admin key or not; stopped in the other order."""
    return (EnergyPart(here), CapsPart(is_gated=is_gated))


class AgentService:
    """One host's agent. Lives in one event loop.

    It listens on the loopback where its workers do, else on every interface, which the tier map
    allows with a key alone.
    """

    def __init__(
        self,
        here: Here,
        parts: Sequence[Part],
        *,
        admin_key: str | None = None,
    ) -> None:
        self._here = here
        self._parts = tuple(parts)
        self._started: list[Part] = []
        self.port = here.settings.agent_port
        self._server: ControlServer | None = None
        self._app = agent_app(self._parts, admin_key)

    async def start(self) -> None:
        """Bring the parts up, then listen. Raises ConserveError, with nothing left behind."""
        host = listening_host(self._here.host)
        sock = bound(host, self.port, "energy.agent_port")
        try:
            for part in self._parts:
                self._started.append(part)
                await part.start()
        except BaseException:
            sock.close()
            await self.stop()
            raise
        self._server = ControlServer(self._app, sock, None)
        self.port = self._server.port
        logger.info("listening on %s:%d for %s", host, self.port, self._here.host)

    async def stop(self) -> None:
        """Stop listening, then stop the parts; one that fails does not keep the others."""
        if self._server is not None:
            await self._server.stop()
            self._server = None
        while self._started:
            part = self._started.pop()
            try:
                await part.stop()
            except Exception:
                logger.exception("%s did not stop in order", part.name)


def agent_app(parts: Sequence[Part], admin_key: str | None) -> ASGIApp:
    """The ASGI application: `GET /health` and the parts' endpoints, behind the key if any."""

    async def health(request: Request) -> Response:
        told = {part.name: dict(part.health()) for part in parts}
        is_well = all("problem" not in part for part in told.values())
        body = {"status": "ok" if is_well else "degraded"}
        is_brief = getattr(request.state, STRANGER, False)
        return JSONResponse(body if is_brief else {**body, **told})

    routes = [Route("/health", health)]
    for part in parts:
        routes += part.routes()
    app = json_app(routes)
    return app if admin_key is None else Gate(app, admin_key)


def listening_host(host: str) -> str:
    """Where the agent of a tier map's host listens."""
    is_loopback = host in LOOPBACK_HOSTS or host.startswith("127.")
    return host if is_loopback else "0.0.0.0"


async def run(service: AgentService, told_to_stop: asyncio.Event) -> None:
    """Serve until it is told to stop."""
    await service.start()
    try:
        await told_to_stop.wait()
        logger.info("stopping")
    finally:
        await service.stop()
