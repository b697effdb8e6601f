"""A small HTTP server that lives in its process's own event loop, and ends when it is told to.

It shares its process's memory and descriptors with work that matters more. So bodies, heads,
connections and the time that each may take are bounded.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from conserve_sglang.serving.bounded_app import BoundedApp
from conserve_sglang.serving.bounded_protocol import KEEP_ALIVE_S, MAX_HEAD_BYTES, BoundedProtocol

HANDSHAKE_S = 10.0
BACKLOG = 128


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, and with little time for TLS handshakes."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        def protocol() -> BoundedProtocol:
            return BoundedProtocol(self.config, self.server_state, app_state={})

        tls: dict[str, Any] = {}
        if self.config.ssl is not None:
            tls = {"ssl": self.config.ssl, "ssl_handshake_timeout": HANDSHAKE_S}
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(protocol, sock=sock, backlog=BACKLOG, **tls)
            for sock in sockets or ()
        ]
        self.started = True


class ControlServer:
    """Serves one ASGI application on one socket, with TLS if there is a context."""

    def __init__(self, app: ASGIApp, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            BoundedApp(app),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=int(KEEP_ALIVE_S),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        sock.listen(BACKLOG)  # who comes before the loop has had its turn waits
        self.port: int = sock.getsockname()[1]
        serving = self._server.serve(sockets=[sock])
        self._task = asyncio.get_running_loop().create_task(serving)

    @property
    def listening(self) -> list[tuple[str, int]]:
        """Where it listens; nowhere until the loop has had its turn."""
        if not self._server.started:
            return []
        sockets = (sock for server in self._server.servers for sock in server.sockets)
        return [sock.getsockname()[:2] for sock in sockets]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        self._server.should_exit = self._server.force_exit = True
        await self._task
        for connection in tuple(self._server.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.abort()
