"""A relay that decides nothing: what any router in Python on uvloop pays for its sockets alone.

    python -m bench.overhead.relay PORT UPSTREAM_PORT...

Each client connection has one to every upstream. Requests go to all of them as they came, the last
one's answers go back as they come, those of the others are dropped. No parsing: a client that
waits for its answer before it asks again, and upstreams that answer everything, are assumed.
`GET /health` goes upstream like the rest.
"""

import asyncio
import sys
from typing import Any

import uvloop


class _Upstream(asyncio.Protocol):
    def __init__(self, client: Any) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            self._client.write(data)


class _Client(asyncio.Protocol):
    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._upstreams: list[Any] = []
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect(transport))

    def data_received(self, data: bytes) -> None:
        if len(self._upstreams) < len(self._ports):
            self._early.append(data)
        for upstream in self._upstreams:
            upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connecting.cancel()
        for upstream in self._upstreams:
            upstream.abort()

    async def _connect(self, client: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        opened = []
        for port in self._ports:
            sink = client if port == self._ports[-1] else None
            where = ("127.0.0.1", port)
            transport, _ = await loop.create_connection(lambda to=sink: _Upstream(to), *where)  # type: ignore[misc]
            opened.append(transport)
        self._upstreams = opened
        for upstream in opened:
            upstream.writelines(self._early)


async def _serve(port: int, upstream_ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(upstream_ports), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    listen, *upstreams = map(int, sys.argv[1:])
    uvloop.run(_serve(listen, upstreams))
