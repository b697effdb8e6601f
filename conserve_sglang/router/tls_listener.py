"""Listens for clients that speak TLS, and knows of each connection from its acceptance on.

A listener of the event loop tells of a TLS connection when its handshake is over, and of one whose
handshake fails never: as many silent connections as somebody likes would go past every bound.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from conserve_sglang.router.admission import TurnedAway
from conserve_sglang.router.client import ClientConnection

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
# Who is turned away hears so behind a handshake, which costs a descriptor and the most CPU time of
# all: few at a time, for a short while. Further connections are closed as they come.
MAX_TURNED_AWAY = 64
TURNED_AWAY_TIMEOUT_S = 1.0
_PAUSE_S = 0.5  # when there is no descriptor left to accept with


class TlsListener:
    """Accepts on `bound`, a socket that listens, from its making to `close`.

    `new_client` is asked once for each connection what serves it. If a handshake fails that is told
    by `connection_lost`, without a `connection_made` before.
    """

    def __init__(
        self,
        bound: socket.socket,
        context: ssl.SSLContext,
        new_client: Callable[[], ClientConnection | TurnedAway],
    ) -> None:
        self._bound = bound
        self._context = context
        self._new_client = new_client
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._num_turned_away = 0  # whose handshake is not over
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and give up the handshakes that are not over."""
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def _accept(self) -> None:
        try:
            while True:
                try:
                    accepted, _ = await self._loop.sock_accept(self._bound)
                except OSError as error:
                    logger.error("no connection can be accepted: %s", error)
                    await asyncio.sleep(_PAUSE_S)
                else:
                    self._take(accepted)
        finally:
            self._bound.close()

    def _take(self, accepted: socket.socket) -> None:
        client = self._new_client()
        is_turned_away = isinstance(client, TurnedAway)
        if is_turned_away:
            if self._num_turned_away >= MAX_TURNED_AWAY:
                accepted.close()
                return
            self._num_turned_away += 1
        timeout_s = TURNED_AWAY_TIMEOUT_S if is_turned_away else HANDSHAKE_TIMEOUT_S
        handshake = self._loop.create_task(self._shake_hands(accepted, client, timeout_s))
        self._handshakes.add(handshake)

        def over(handshake: asyncio.Task[None]) -> None:
            self._handshakes.discard(handshake)
            if is_turned_away:
                self._num_turned_away -= 1
            if handshake.cancelled():  # perhaps before it began
                accepted.close()
                client.connection_lost(None)

        handshake.add_done_callback(over)

    async def _shake_hands(
        self, accepted: socket.socket, client: ClientConnection | TurnedAway, timeout_s: float
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: client,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=timeout_s,
            )
        except Exception as error:  # of this connection; the next ones are to be accepted
            logger.debug("a TLS handshake failed: %s", error)
            client.connection_lost(error)
