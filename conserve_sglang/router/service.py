"""The router as a running service: composed from a tier map, listening, and stopped in order."""

import asyncio
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from prometheus_client.registry import Collector

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import RouterSettings, TierMap
from conserve_sglang.dispatch import Dispatcher, dispatch_settings
from conserve_sglang.policy.registry import make_served_policy
from conserve_sglang.router.about import AboutBrain
from conserve_sglang.router.access import worker_access
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.control import ControlEndpoints, control_app
from conserve_sglang.router.door import Door
from conserve_sglang.router.energy import EnergyWatch
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.memory import Memory
from conserve_sglang.router.meter import Meter
from conserve_sglang.router.place import Placements
from conserve_sglang.router.ports import About
from conserve_sglang.router.power import PowerTask
from conserve_sglang.router.reports import Reports
from conserve_sglang.router.responses_about import ResponseDesk
from conserve_sglang.router.responses_store import ResponseStore
from conserve_sglang.router.status import StateHealth, Status
from conserve_sglang.router.tls import ServerTls, reload_tls
from conserve_sglang.router.tuning import is_compiled
from conserve_sglang.router.worker_endpoints import WorkerEndpoints
from conserve_sglang.serving.control_server import ControlServer
from conserve_sglang.serving.listening import bound
from conserve_sglang.state import StateStore, Store
from conserve_sglang.telemetry.energy import EnergyCollector
from conserve_sglang.telemetry.logs import told
from conserve_sglang.telemetry.metrics import RouterMetrics
from conserve_sglang.telemetry.power import PowerCollector
from conserve_sglang.telemetry.prometheus import Exporter
from conserve_sglang.tiermap.check import is_loopback
from conserve_sglang.tiermap.secrets import admin_key

logger = logging.getLogger(__name__)

_MIB = 1024 * 1024


class Keeper(StateHealth, Protocol):
    """Keeps conversations in a file, or in Redis."""

    @property
    def desk(self) -> About | None:
        """Answers about stored responses, where others may know them too."""
        ...

    async def restore(self) -> None:
        """Go on with what is kept; awaited before clients are served."""
        ...

    async def stop(self) -> None:
        """Keep what is left, and let go."""
        ...


def _room_for_responses(settings: RouterSettings) -> ResponseStore:
    return ResponseStore(settings.stored_responses_mb * _MIB, settings.response_objects_mb * _MIB)


class BrainService(ABC):
    """All of the router but its clients' side: brain, fleet, control port. Lives in one event loop.

    Conversation keys and history hashes are keyed with `secret`, of up to 64 bytes; by default it
    is the store's, else random. Without a store, conversations are known until the router ends.
    The store is closed with the service.
    """

    def __init__(
        self,
        tier_map: TierMap,
        *,
        trusts_decoders: bool = False,
        secret: bytes | None = None,
        store: Store | None = None,
    ) -> None:
        settings = tier_map.router
        self._settings = settings
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        dispatcher = Dispatcher(
            make_served_policy(tier_map.policy),
            dispatch_settings(settings),
        )
        self.fleet = Fleet(
            tier_map, trusts_decoders=trusts_decoders, access=worker_access(settings)
        )
        self.reports = Reports(self.fleet, settings.observe.report_interval_s)
        if secret is None:
            secret = os.urandom(32) if store is None else store.secret()
        self.secret = secret
        explained = settings.observe.explained_turns
        responses = _room_for_responses(settings)
        self.brain = Brain(dispatcher, self.fleet, self._clock, secret, explained, responses)
        self.memory = None if store is None else self._keeper(store)
        self.fleet.tell = self.brain.tell
        self.fleet.books = dispatcher
        self._status = status = Status(dispatcher, self.fleet, self.reports, self.brain.journal)
        status.memory = self.memory
        self.energy = status.energy = self._energy(tier_map)
        self.power = self._power(tier_map, dispatcher)
        others: list[Collector] = []
        if self.energy is not None:
            others.append(EnergyCollector(self.energy.reading))
        if self.power is not None:
            others.append(PowerCollector(self.power.reading))
        exporter = Exporter(self.metrics, status.gauges, tier_map.policy.name, others)
        self.placements = Placements(self.brain, self.fleet.worker, self._clock)
        self.placements.tags_turns = tier_map.energy is not None
        self.placements.salts = self.brain.salts if settings.auth.keys_file else None
        desk = None if self.memory is None else self.memory.desk
        desk = desk or ResponseDesk(self.brain.responses, settings.max_body_bytes)
        self.about = AboutBrain(self.brain, status, self.placements, desk)
        workers = WorkerEndpoints(tier_map, self.fleet, status)
        control = ControlEndpoints(self.brain, workers, status, exporter, self.power)
        self._tls = None if settings.tls is None else ServerTls(settings.tls)
        self._control_app = control_app(control, admin_key(settings))
        self.port, self.control_port = settings.port, settings.control_port
        self._control_server: ControlServer | None = None

    def _energy(self, tier_map: TierMap) -> EnergyWatch | None:
        """What the agents tell, where energy is read."""
        if tier_map.energy is None:
            return None
        find = self.brain.conversations.by_key
        return EnergyWatch(tier_map, find, self._clock, admin_key(self._settings))

    def _power(self, tier_map: TierMap, dispatcher: Dispatcher) -> PowerTask | None:
        """The power controller, where there is a budget and energy is read."""
        if tier_map.energy is None or not tier_map.has_budget:
            return None
        return PowerTask(
            tier_map,
            tell=self.brain.tell,
            running=dispatcher,
            metrics=self.metrics,
            admin_key=admin_key(self._settings),
        )

    def _keeper(self, store: Store) -> Keeper:
        settings, ttl_s = self._settings, self._settings.conversation_ttl_s
        keeps = settings.state is not None and settings.state.keep_responses
        if isinstance(store, StateStore):
            return Memory(store, self.brain, self.fleet, ttl_s, keep_responses=keeps)
        from conserve_sglang.router.replica import Replica  # needs an extra
        from conserve_sglang.router.replica_responses import ReplicaWithResponses

        if not keeps:
            return Replica(store, self.brain, self.fleet)
        return ReplicaWithResponses(store, self.brain, self.fleet, settings.max_body_bytes, ttl_s)

    def count_with(self, meter: Meter) -> None:
        """What the brain sees is counted here: placed turns, and conversations' TTFET."""
        self.placements.meter = meter
        self.brain.on_spoken = meter.spoken

    @abstractmethod
    def metrics(self) -> RouterMetrics:
        """What has been counted where clients are served."""

    def reload_keys(self) -> None:
        """Read the key file and the certificate again; a file that is wrong changes nothing."""
        reload_tls(self._tls, "control port")
        self._look_at_certificate()

    def _look_at_certificate(self) -> None:
        if self._tls is not None:
            self._tls.warn_if_it_ends(time.time())
            self._status.certificate_expires_at_s = self._tls.expires_at_s

    @abstractmethod
    def _bind(self) -> socket.socket:
        """Take the clients' port."""

    @abstractmethod
    def _take_early(self, main: socket.socket) -> None:
        """Let who comes while conversations are restored wait."""

    @abstractmethod
    async def _open(self, main: socket.socket) -> None:
        """Serve clients."""

    @abstractmethod
    async def _shut(self) -> None:
        """Begin nothing new, let open answers become whole, let go of the clients."""

    @abstractmethod
    def hurry(self) -> None:
        """Let `stop` wait for no answer: what is open ends with an error at once."""

    async def start(self) -> None:
        """Listen on both ports, then begin to probe. Raises ConfigError if a port is taken."""
        settings = self._settings
        main = self._bind()
        try:
            control = bound(settings.control_host, settings.control_port, "router.control_port")
        except ConfigError:
            main.close()
            raise
        self._take_early(main)
        tls = None if self._tls is None else self._tls.context
        self._control_server = ControlServer(self._control_app, control, tls)
        self._look_at_certificate()
        self.fleet.start()
        if self.memory is not None:
            await self.memory.restore()
        await self._open(main)
        self._status.is_serving = True
        self.reports.start()
        if self.energy is not None:
            self.energy.start()
        if self.power is not None:
            self.power.start()
        self.port, self.control_port = (each.getsockname()[1] for each in (main, control))
        logger.info(
            "listening on %s:%d, control port on %s:%d%s",
            settings.host,
            self.port,
            settings.control_host,
            self.control_port,
            ", compiled" if is_compiled() else "",
            extra=told("router_listening", port=self.port, control_port=self.control_port),
        )
        if settings.auth.keys_file is None and not is_loopback(settings.host):
            logger.warning(
                "whoever reaches %s:%d may use the workers: there are no API keys. See"
                " router.auth.keys_file in the tier map.",
                settings.host,
                self.port,
            )

    async def stop(self) -> None:
        """Begin nothing new, give open answers `router.drain_s`, then close everything."""
        self._status.is_stopping = True
        await self._shut()
        if self.power is not None:
            await self.power.stop()
        self.placements.stop()
        self.brain.stop()
        await self.reports.stop()
        if self.energy is not None:
            await self.energy.stop()
        await self.fleet.stop()
        if self.memory is not None:
            await self.memory.stop()
        if self._control_server is not None:
            await self._control_server.stop()


class RouterService(BrainService):
    """The whole router in one process and one event loop."""

    def __init__(
        self,
        tier_map: TierMap,
        *,
        trusts_decoders: bool = False,
        secret: bytes | None = None,
        store: Store | None = None,
    ) -> None:
        super().__init__(tier_map, trusts_decoders=trusts_decoders, secret=secret, store=store)
        self.door = Door(tier_map, self.brain, self.fleet, self.about)
        self.brain.carry_out = self.door.executor.carry_out
        self.count_with(self.door.executor.meter)

    def metrics(self) -> RouterMetrics:
        """What this process has counted."""
        return self.door.metrics

    def reload_keys(self) -> None:
        """See `Door.reload_keys`."""
        super().reload_keys()
        self.door.reload_keys()

    def _bind(self) -> socket.socket:
        return bound(self._settings.host, self._settings.port, "router.port")

    def _take_early(self, main: socket.socket) -> None:
        main.listen()

    async def _open(self, main: socket.socket) -> None:
        await self.door.listen(main)

    def hurry(self) -> None:
        """See `Door.hurry`."""
        self.door.hurry()

    async def _shut(self) -> None:
        await self.door.drain()
        self.door.close()
