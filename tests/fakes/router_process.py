"""The router as a process of its own, in front of fake workers in the test's loop."""

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.router_cluster import ROLES, Answer, Client
from tests.fakes.sglang_worker import FakeWorker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RouterProcess:
    """One router; it may be killed and started again on the same ports."""

    def __init__(
        self, folder: Path, workers: Mapping[str, FakeWorker], name: str = "map", **router: Any
    ) -> None:
        self.port, self.control_port = free_port(), free_port()
        self.tier_map = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        self.write(workers, **router)
        self.tls: ssl.SSLContext | None = None  # what clients connect with
        self._process: asyncio.subprocess.Process | None = None

    def write(self, workers: Mapping[str, FakeWorker], **router: Any) -> None:
        """Write the tier map; the router reads it at its next start."""
        ports = {"port": self.port, "control_port": self.control_port}
        tiers = [
            {
                "name": name,
                "role": ROLES[worker.mode].value,
                "gpu": "cpu",
                "base_port": worker.port,
                **({"bootstrap_base_port": free_port()} if worker.mode == "prefill" else {}),
            }
            for name, worker in workers.items()
        ]
        tier_map = {
            "schema_version": 1,
            "model": {"path": "models/tiny", "served_name": "tiny"},
            "tiers": tiers,
            "router": {**ports, **router},
        }
        self.tier_map.write_text(yaml.safe_dump(tier_map))

    async def start(self, *options: str) -> None:
        """Start it, and wait until it has all its workers."""
        argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(self.tier_map)]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv, *options, stdout=log, stderr=log
            )
        for _ in range(600):
            assert self._process.returncode is None, self.log.read_text()
            try:
                health = (await self.get("/health")).json()
            except OSError:
                pass
            else:
                if health["status"] == "ok":
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(self.log.read_text())

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        assert self._process is not None
        return await self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def get(self, path: str, method: str = "GET") -> Answer:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls))
        try:
            client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return await client.answer()
        finally:
            client.close()

    async def chat(self, *said: str, name: str | None = "c", **fields: Any) -> Answer:
        """A chat turn; `said` alternates between user and assistant."""
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)
        ]
        headers = {} if name is None else {"x-conversation-id": name}
        body = {"model": "tiny", "messages": messages, **fields}
        return await self.post("/v1/chat/completions", body, headers)

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls))
        try:
            client.ask(path, body, headers)
            return await client.answer()
        finally:
            client.close()


@asynccontextmanager
async def a_router_process(
    folder: Path,
    workers: Mapping[str, FakeWorker],
    name: str = "map",
    client_tls: ssl.SSLContext | None = None,
    **router: Any,
) -> AsyncIterator[RouterProcess]:
    """A running router; what is left of it at the end is killed."""
    process = RouterProcess(folder, workers, name, **router)
    process.tls = client_tls
    await process.start()
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)
