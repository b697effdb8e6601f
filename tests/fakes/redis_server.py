"""A Redis server of a test's own, on a free port; it may be killed, frozen and started again."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fakes.router_process import free_port


class RedisServer:
    """Keeps what it has in memory alone, so that a new life begins empty, unless saved."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self._folder = folder
        self._password = password
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--dir", str(self._folder), "--requirepass", self._password,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
        raise AssertionError("redis-server did not start")

    async def keys(self) -> list[bytes]:
        async with Redis.from_url(self.url) as server:
            return [key for key in await server.keys() if isinstance(key, bytes)]

    async def text_of(self, key: bytes) -> int:
        """How many bytes of what was said a response has; 0 for anything else."""
        async with Redis.from_url(self.url) as server:
            if await server.type(key) != b"hash":
                return 0
            return len(await server.hget(key, "m") or b"")

    async def life_ms(self, key: bytes) -> int:
        """How long a key has yet; -1 if it does not expire."""
        async with Redis.from_url(self.url) as server:
            return int(await server.pttl(key))

    async def bound_memory(self, num_bytes: int) -> None:
        """Have it take nothing more beyond so many bytes; 0: no bound."""
        async with Redis.from_url(self.url) as server:
            await server.config_set("maxmemory", num_bytes)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def a_redis_server(folder: Path, password: str = "") -> AsyncIterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: scripts/redis_server.sh")
    server = RedisServer(folder, password)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
