"""What the launcher asks over TLS, and whom it tells its key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conserve_sglang.core.tier import TlsSettings
from conserve_sglang.launcher.ready import is_healthy, tell_router
from tests.fakes.certificates import Authority, server_context


@asynccontextmanager
async def a_server(tls: TlsSettings, heard: list[bytes]) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(tls))
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_health_is_asked_over_tls(tmp_path: Path) -> None:
    async with a_server(Authority(tmp_path).issue(), []) as port:
        assert await is_healthy("127.0.0.1", port, timeout_s=10, is_tls=True)
        assert not await is_healthy("127.0.0.1", port, timeout_s=10)


async def test_key_is_told_to_the_routers_own_certificate_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own, other = authority.issue(), authority.issue("other")
    for tls, is_told in ((own, True), (other, False)):
        heard: list[bytes] = []
        async with a_server(tls, heard) as port:
            took = await tell_router(
                ("127.0.0.1", port),
                "d-0",
                "lost",
                timeout_s=10,
                admin_key="hush",
                cert_file=own.cert_file,
            )
        assert took is is_told
        assert (b"hush" in b"".join(heard)) is is_told
