"""An agent that tells what a test has it tell, on a real socket in the test's loop."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sglang.serving.control_server import ControlServer


class FakeAgent:
    """Settlings and counters as the test sets them."""

    def __init__(self) -> None:
        self.port = 0
        self.incarnation = "first"
        self.settled_age_s = 0.0
        self.status = 200
        self.counters: list[list[Any]] = []
        self.billed: list[list[list[Any]]] = []  # by settling
        self.more: dict[str, Any] = {}  # further members of its answer
        self.keys: list[str | None] = []

    def bill(self, conversation: str, turn: int, phase: str, joules: float, **more: str) -> None:
        """One settling with one row."""
        origin, split = more.get("origin", "measured"), more.get("split", "own")
        self.billed.append([[conversation, turn, "d0", phase, origin, split, joules]])

    async def energy(self, request: Request) -> Response:
        """GET /energy."""
        self.keys.append(request.headers.get("authorization"))
        since = int(request.query_params["since"])
        rows = [row for settling in self.billed[since:] for row in settling]
        device = {
            "id": "gpu-0", "kind": "gpu", "origin": "measured", "joules": 10.0, "watts": 70.0,
            "workers": ["d0"],
        }  # fmt: skip
        body = {
            "incarnation": self.incarnation,
            "settling": len(self.billed),
            "settled_age_s": self.settled_age_s,
            "devices": [device],
            "counters": self.counters,
            "turns": rows,
            **self.more,
        }
        return JSONResponse(body, self.status)


@asynccontextmanager
async def an_agent(settled_age_s: float = 0.0) -> AsyncIterator[FakeAgent]:
    """A fake agent that listens on the loopback; how far behind its books are."""
    agent = FakeAgent()
    agent.settled_age_s = settled_age_s
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        server = ControlServer(Starlette(routes=[Route("/energy", agent.energy)]), sock, None)
        agent.port = server.port
        try:
            yield agent
        finally:
            await server.stop()
