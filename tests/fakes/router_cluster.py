"""A router in front of fake workers, on real sockets, in the test's own loop."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import (
    EnergySettings,
    Model,
    PolicyChoice,
    RouterSettings,
    Slo,
    Tier,
    TierMap,
    WorkerPlan,
)
from conserve_sglang.core.worker import Role
from conserve_sglang.router.fleet import WorkerState
from conserve_sglang.router.service import RouterService
from conserve_sglang.state import Store
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE, "null": Role.MIXED}


@dataclass
class Answer:
    """One answer as a client saw it."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        datas = [part[6:] for part in self.body.decode().split("\n\n") if part]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


class Client:
    """A client that shows every byte; no library between the test and the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, path: str, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{lines}"
        self.send(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        first, *lines = head.split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> Answer:
        status, headers = await self.head()
        is_whole = True
        if headers.get("transfer-encoding") == "chunked":
            body, is_whole = await self._chunks()
        elif "content-length" in headers:
            body = await asyncio.wait_for(
                self.reader.readexactly(int(headers["content-length"])), 10
            )
        else:
            body = await asyncio.wait_for(self.reader.read(), 10)
        return Answer(status, headers, body, is_whole)

    async def _chunks(self) -> tuple[bytes, bool]:
        body = b""
        while True:
            line = await asyncio.wait_for(self.reader.readline(), 10)
            if not line:
                return body, False
            size = int(line, 16)
            chunk = await asyncio.wait_for(self.reader.readexactly(size + 2), 10)
            if not size:
                return body, True
            body += chunk[:-2]

    async def is_closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 10) == b""

    def close(self) -> None:
        self.writer.close()


class Cluster:
    """The router and its workers."""

    def __init__(self, service: RouterService, workers: dict[str, FakeWorker]) -> None:
        self.service = service
        self.workers = workers
        self.tls: ssl.SSLContext | None = None  # what clients connect with
        self._clients: list[Client] = []

    def __getitem__(self, name: str) -> FakeWorker:
        return self.workers[name]

    async def connect(self) -> Client:
        return await self._client(self.service.port)

    async def _client(self, port: int) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=self.tls))
        self._clients.append(client)
        return client

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        client = await self.connect()
        client.ask(path, body, headers)
        return await client.answer()

    async def chat(
        self, *said: str, name: str | None = "c", stream: bool = False, **fields: Any
    ) -> Answer:
        """A chat turn; `said` alternates between user and assistant."""
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)
        ]
        body = {"model": "tiny", "messages": messages, "stream": stream, **fields}
        headers = {} if name is None else {"x-conversation-id": name}
        return await self.post("/v1/chat/completions", body, headers)

    async def request(
        self,
        method: str,
        path: str,
        port: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        client = await self._client(port or self.service.port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        return await client.answer()

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait for something another party does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not is_so():
            assert loop.time() < deadline, "did not happen in time"
            await asyncio.sleep(0.005)

    async def until_met(self, *names: str) -> None:
        wanted = {WorkerId(name) for name in names or self.workers}
        await self.until(lambda: all(self.service.fleet.is_up(worker_id) for worker_id in wanted))

    def state_of(self, name: str) -> WorkerState:
        return self.service.fleet.worker(WorkerId(name)).state

    async def hang_up(self) -> None:
        for client in self._clients:
            client.close()
        await asyncio.sleep(0.01)


SETTINGS = RouterSettings(
    port=0,
    control_port=0,
    queue_timeout_s=2.0,
    max_body_bytes=200_000,
    health=HealthSettings(probe_interval_s=0.05),
)


def a_tier_map(
    workers: dict[str, FakeWorker], policy: str, settings: RouterSettings, **params: Any
) -> TierMap:
    tiers = []
    plans = []
    for name, worker in workers.items():
        role = ROLES[worker.mode]
        tiers.append(
            Tier(
                name=TierName(name), role=role, gpu="cpu", count=1, host="127.0.0.1", gpu_ids=(),
                tp=1, base_port=worker.port, power_cap_w=None, sm_clock_mhz=None,
                sglang_flags={}, env={},
            )
        )  # fmt: skip
        plans.append(
            WorkerPlan(
                worker_id=WorkerId(name), role=role, tier=TierName(name), host="127.0.0.1",
                port=worker.port, gpu_ids=(),
                bootstrap_port=worker.bootstrap_port if role is Role.PREFILL else None,
            )
        )  # fmt: skip
    return TierMap(
        source="test",
        model=Model(path="models/tiny", served_name="tiny"),
        tiers=tuple(tiers),
        workers=tuple(plans),
        policy=PolicyChoice(name=policy, params=params),
        slo=Slo(),
        power_budget_w=None,
        router=settings,
    )


@asynccontextmanager
async def a_cluster(
    modes: dict[str, str] | None = None,
    *,
    policy: str = "conserve",
    without_plugin: tuple[str, ...] = (),
    is_met: bool = True,
    params: dict[str, Any] | None = None,
    secret: bytes | None = None,
    store: Store | None = None,
    worker_api_key: str | None = None,
    worker_context: ssl.SSLContext | None = None,
    energy: EnergySettings | None = None,
    **settings: Any,
) -> AsyncIterator[Cluster]:
    """A router over fake workers, p + 2 d unless told otherwise; stopped in order."""
    rendezvous = Rendezvous()
    modes = modes or {"p0": "prefill", "d0": "decode", "d1": "decode"}
    workers = {
        name: FakeWorker(
            mode,
            rendezvous,
            has_plugin=name not in without_plugin,
            api_key=worker_api_key,
            tls=worker_context,
        )
        for name, mode in modes.items()
    }
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        router = replace(SETTINGS, **settings)
        tier_map = replace(a_tier_map(workers, policy, router, **(params or {})), energy=energy)
        service = RouterService(tier_map, secret=secret, store=store)
        await service.start()
        cluster = Cluster(service, workers)
        try:
            if is_met:
                await cluster.until_met()
            yield cluster
        finally:
            await cluster.hang_up()
            await service.stop()
