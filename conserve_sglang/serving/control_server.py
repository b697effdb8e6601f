"""A small HTTP server that lives in its process's own event loop, and ends when it is told to."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControlServer:
    """Serves one ASGI application on one socket, with TLS if there is a context."""

    def __init__(self, app: ASGIApp, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        sock.listen()  # who comes before the loop has had its turn waits
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
