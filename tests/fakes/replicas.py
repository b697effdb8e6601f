"""Several replicas of the router over the same fake workers, with a real Redis between them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from conserve_sglang.core.tier import StateSettings
from conserve_sglang.router.service import RouterService
from conserve_sglang.state import open_store
from tests.fakes.redis_server import RedisServer, a_redis_server
from tests.fakes.router_cluster import SETTINGS, Cluster, a_tier_map
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

MODES = {"p0": "prefill", "d0": "decode", "d1": "decode", "d2": "decode"}


class Site:
    """Workers, Redis, and as many replicas as a test starts."""

    def __init__(self, stack: AsyncExitStack, folder: Path, *, keep_responses: bool) -> None:
        self._stack = stack
        self._folder = folder
        self._keep_responses = keep_responses
        self.redis: RedisServer
        self.workers: dict[str, FakeWorker] = {}

    async def open(self) -> None:
        self.redis = await self._stack.enter_async_context(a_redis_server(self._folder))
        rendezvous = Rendezvous()
        for name, mode in MODES.items():
            worker = self.workers[name] = FakeWorker(mode, rendezvous)
            await self._stack.enter_async_context(worker.serve())

    @asynccontextmanager
    async def a_replica(self, **settings: Any) -> AsyncIterator[Cluster]:
        state = StateSettings(
            redis=self.redis.url, namespace="test", keep_responses=self._keep_responses
        )
        router = replace(SETTINGS, state=state, **settings)
        tier_map = a_tier_map(self.workers, "conserve", router)
        service = RouterService(tier_map, store=open_store(tier_map))
        await service.start()
        cluster = Cluster(service, self.workers)
        try:
            await cluster.until_met()
            yield cluster
        finally:
            await cluster.hang_up()
            await service.stop()

    async def replica(self, **settings: Any) -> Cluster:
        return await self._stack.enter_async_context(self.a_replica(**settings))

    def prefilled(self) -> int:
        return len(self.workers["p0"].turns)


@asynccontextmanager
async def a_site(folder: Path, *, keep_responses: bool = False) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        site = Site(stack, folder, keep_responses=keep_responses)
        await site.open()
        yield site


def is_degraded(cluster: Cluster) -> bool:
    kept = cluster.service.memory
    return kept is not None and kept.problem is not None
