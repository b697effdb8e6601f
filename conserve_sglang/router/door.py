"""The clients' side of the router: listens, and holds client connections and turns.

There is one in each process that serves clients; what it must know it asks of the brain.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.dispatch import TenantsWeighed
from conserve_sglang.router.access_log import AccessLog
from conserve_sglang.router.admission import HeldBytes, TurnedAway
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.executor import Executor
from conserve_sglang.router.front import Front
from conserve_sglang.router.keyring import read_keyring
from conserve_sglang.router.listeners import turn_listeners
from conserve_sglang.router.patience import SWEEP_INTERVAL_S
from conserve_sglang.router.ports import About, BrainPort, FleetView
from conserve_sglang.router.problem import STOPPING
from conserve_sglang.router.tls import ServerTls, reload_tls
from conserve_sglang.router.tls_listener import TlsListener
from conserve_sglang.telemetry.metrics import RouterMetrics

logger = logging.getLogger(__name__)

LISTEN_BACKLOG = 2048
POLL_S = 0.05
FLUSH_S = 2.0  # for what clients are told at the end to leave


def keeps_latencies(tier_map: TierMap) -> bool:
    """Whether a power controller wants the newest latencies."""
    return tier_map.energy is not None and tier_map.has_budget


class Door:
    """Serves clients from `listen` to `close`. `number` tells its turns from other processes'."""

    def __init__(
        self, tier_map: TierMap, brain: BrainPort, fleet: FleetView, about: About, number: int = 0
    ) -> None:
        self._settings = tier_map.router
        self._name = f"main port of front {number}" if number else "main port"
        self._brain = brain
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self.metrics = RouterMetrics(keeps_latencies=keeps_latencies(tier_map))
        self._listeners = turn_listeners(self._settings.observe, self._clock)
        self.executor = Executor(brain, fleet, self.metrics, self._clock, number, self._listeners)
        self.executor.logs_names = self._settings.observe.log_conversation_names
        self.executor.tags_turns = tier_map.energy is not None
        logs = (each for each in self._listeners if isinstance(each, AccessLog))
        self._access = next(logs, None)
        self.front = Front(tier_map, self.executor, brain, fleet, about, self._access)
        self._held = HeldBytes(self._settings.overload.max_held_bytes)
        tls = tier_map.router.tls
        self._tls = None if tls is None else ServerTls(tls)
        self._note_certificate()
        self._clients: set[ClientConnection] = set()
        self._server: asyncio.AbstractServer | TlsListener | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_hurried = False

    @property
    def num_clients(self) -> int:
        """Client connections that are open, those whose TLS handshake is not over included."""
        return len(self._clients)

    async def listen(self, bound: socket.socket) -> None:
        """Take clients on a socket that is bound."""
        self._weigh_tenants()
        loop = asyncio.get_running_loop()
        if self._tls is None:
            self._server = await loop.create_server(
                self.new_client, sock=bound, backlog=LISTEN_BACKLOG
            )
        else:
            bound.listen(LISTEN_BACKLOG)
            self._server = TlsListener(bound, self._tls.context, self.new_client)
        self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    async def drain(self) -> None:
        """Begin nothing new, and let open answers become whole, for `router.drain_s` at most.

        Who asks meanwhile is told to go elsewhere. What is open at the end gets an error: a stream
        as its last event, the rest as its answer. `hurry` brings that end about at once.
        """
        self.front.is_stopping = True
        for client in self._clients:
            if client.is_waiting:
                client.close()  # behind its answer
        until = self._clock() + self._settings.drain_s
        while self._is_awaited() and self._clock() < until and not self._is_hurried:
            await asyncio.sleep(POLL_S)
        if self._server is not None:
            self._server.close()
        self.executor.end_turns(STOPPING)
        for client in tuple(self._clients):
            client.stop(STOPPING)
        until = self._clock() + FLUSH_S
        while self._clients and self._clock() < until:
            await asyncio.sleep(POLL_S)

    def hurry(self) -> None:
        """Wait for no answer any more, now or when told to drain."""
        self._is_hurried = True

    def _is_awaited(self) -> bool:
        return self.executor.num_open_turns > 0 or any(each.is_waiting for each in self._clients)

    def close(self) -> None:
        """Let go of every turn and every client."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.executor.stop()
        for client in tuple(self._clients):
            client.abort()
        for listener in self._listeners:
            listener.stop()

    def reload_keys(self) -> None:
        """Read the key file and the certificate again; a file that is wrong changes nothing.

        Connections that are open ask again with their next request.
        """
        reload_tls(self._tls, self._name)
        self._note_certificate()
        if self._settings.auth.keys_file is None:
            return
        try:
            self.front.keyring = read_keyring(self._settings.auth)
        except ConfigError as error:
            logger.error("%s: the keys stay as they are: %s", self._name, error)
            return
        self._weigh_tenants()
        logger.info("%s: the key file was read again", self._name)

    def _note_certificate(self) -> None:
        if self._tls is not None:
            self.metrics.certificate_expires_at_s = self._tls.expires_at_s

    def _weigh_tenants(self) -> None:
        if self.front.keyring is not None:
            self._brain.tell(TenantsWeighed(weights=self.front.keyring.weights))

    def _sweep(self) -> None:
        for client in tuple(self._clients):
            client.sweep()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._sweep)

    def new_client(self) -> ClientConnection | TurnedAway:
        """What serves a connection that has just come in."""
        settings = self._settings
        if len(self._clients) >= settings.overload.max_connections:
            return TurnedAway(self._access)
        client = ClientConnection(
            self.front.serve,
            self._clients,
            settings.max_body_bytes,
            self._held,
            None if settings.auth.keys_file is None else self.front.let_in,
            self._access,
        )
        self._clients.add(client)
        return client
