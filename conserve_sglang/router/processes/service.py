"""The router as several processes: this one is the brain, the fronts are its children."""

import asyncio
import logging
import socket
from collections.abc import Sequence

from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.door import keeps_latencies
from conserve_sglang.router.listeners import turn_listeners
from conserve_sglang.router.meter import Meter
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.family import Family
from conserve_sglang.router.processes.hub import Hub
from conserve_sglang.router.service import BrainService
from conserve_sglang.serving.listening import reserved
from conserve_sglang.state import Store
from conserve_sglang.telemetry.metrics import RouterMetrics

logger = logging.getLogger(__name__)


class ManyProcesses(BrainService):
    """A brain with `router.processes` children that serve its clients."""

    def __init__(
        self,
        tier_map: TierMap,
        *,
        trusts_decoders: bool = False,
        secret: bytes | None = None,
        store: Store | None = None,
        front_arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(tier_map, trusts_decoders=trusts_decoders, secret=secret, store=store)
        self.hub = Hub(tier_map, self.brain, self.fleet, self.secret)
        self.hub.about = self.about
        self.brain.carry_out = self.hub.carry_out
        self.fleet.tell = self.hub.fleet_event
        self._metrics = RouterMetrics(keeps_latencies=keeps_latencies(tier_map))
        self._listeners = turn_listeners(self._settings.observe, self._clock)
        self.count_with(Meter(self._metrics, self.fleet, self._clock, self._listeners))
        self.family = Family(self.hub, tier_map.router, front_arguments)
        self._reserved: socket.socket | None = None
        self._watching: asyncio.Task[None] | None = None

    def metrics(self) -> RouterMetrics:
        """What all fronts have counted, and the brain of what it alone sees."""
        total = self.hub.metrics()
        total.merge(self._metrics.to_plain())
        return total

    def reload_keys(self) -> None:
        """Have every front read the key file and the certificate again."""
        super().reload_keys()
        self.hub.tell_all(talk.ReloadKeys())

    def _bind(self) -> socket.socket:
        settings = self._settings
        self._reserved = reserved(settings.host, settings.port, "router.port")
        return self._reserved

    def _take_early(self, main: socket.socket) -> None:
        self.hub.port = main.getsockname()[1]

    async def _open(self, main: socket.socket) -> None:
        self._watching = asyncio.get_running_loop().create_task(self.hub.watch())
        await self.family.start()

    def hurry(self) -> None:
        """Have every front end what is open."""
        self.family.hurry()

    async def _shut(self) -> None:
        await self.family.stop()
        for listener in self._listeners:
            listener.stop()
        if self._watching is not None:
            self._watching.cancel()
        if self._reserved is not None:
            self._reserved.close()
