"""A router of several processes in front of fake workers: its brain in the test's own loop."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

from conserve_sglang.router.processes.service import ManyProcesses
from conserve_sglang.router.service import RouterService
from tests.fakes.router_cluster import SETTINGS, Cluster, a_tier_map
from tests.fakes.sglang_worker import FakeWorker, Rendezvous


class Family(Cluster):
    """A cluster whose router has front processes."""

    def __init__(self, many: ManyProcesses, workers: dict[str, FakeWorker]) -> None:
        super().__init__(cast(RouterService, many), workers)  # what a cluster needs, both have
        self.many = many

    @property
    def num_open_turns(self) -> int:
        return self.many.brain.dispatcher.num_open_turns


@asynccontextmanager
async def a_family(num_fronts: int = 2, **settings: Any) -> AsyncIterator[Family]:
    """A prefiller and two decoders behind a brain and its fronts; stopped in order."""
    rendezvous = Rendezvous()
    modes = {"p0": "prefill", "d0": "decode", "d1": "decode"}
    workers = {name: FakeWorker(mode, rendezvous) for name, mode in modes.items()}
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        router = replace(SETTINGS, processes=num_fronts, **settings)
        many = ManyProcesses(a_tier_map(workers, "conserve", router))
        await many.start()
        family = Family(many, workers)
        try:
            await family.until_met()
            yield family
        finally:
            await family.hang_up()
            await many.stop()
