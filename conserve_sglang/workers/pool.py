"""Kept-alive connections to one worker, and the requests that travel on them."""

import asyncio
import logging
import ssl
from collections.abc import Callable

from conserve_sglang.core.errors import TimedOut, Unreachable, WorkerError
from conserve_sglang.workers.access import PLAIN, WorkerAccess
from conserve_sglang.workers.upstream import Pieces, ResponseSink, UpstreamConnection

logger = logging.getLogger(__name__)

MAX_IDLE_CONNECTIONS = 512


class Exchange:
    """One request to a worker, wherever it is on its way; `abort` ends it without a word."""

    __slots__ = ("_connection", "_connector", "_pool", "_request", "_sink")

    def __init__(self, pool: "ConnectionPool", request: Pieces, sink: ResponseSink) -> None:
        self._pool = pool
        self._request: Pieces | None = request
        self._sink: ResponseSink | None = sink
        self._connection: UpstreamConnection | None = None
        self._connector: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """End the exchange; the sink hears nothing more."""
        self._sink = None
        self._request = None
        if self._connector is not None:
            self._connector.cancel()
        connection = self._connection
        self._connection = None
        if connection is not None:
            connection.abandon()

    def close(self) -> None:
        """The answer is whole: forget the connection, which may carry another one already."""
        self._sink = self._request = self._connection = None

    def pause(self) -> None:
        """Stop reading the answer for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def follow_stream(self) -> None:
        """The answer is a stream: its pieces need not be acknowledged one by one."""
        if self._connection is not None:
            self._connection.follow_stream()

    # for the pool

    def connect(self) -> None:
        """Send on a connection that is to be made."""
        self._connector = asyncio.get_running_loop().create_task(self._connect())

    def fail(self, error: WorkerError) -> None:
        """Tell the sink, once."""
        sink = self._sink
        self.close()
        if sink is not None:
            sink.on_broken(error)

    def travel_on(self, connection: UpstreamConnection) -> None:
        """Send on this connection."""
        if self._request is None or self._sink is None:
            return
        self._connection = connection
        connection.send(self._request, self._sink, self._lost)

    async def _connect(self) -> None:
        try:
            connection = await self._pool.connect()
        except WorkerError as error:
            self.fail(error)
            return
        except Exception as error:  # whoever waits must hear of it, whatever it is
            logger.exception("no connection to %s could be made", self._pool.host)
            self.fail(Unreachable(f"no connection could be made: {error!r}"))
            return
        if self._sink is None:
            connection.abandon()
        else:
            self.travel_on(connection)

    def _lost(self, connection: UpstreamConnection, error: WorkerError) -> None:
        self._connection = None
        if connection.num_requests > 1 and not connection.has_answer_begun:
            # The worker closed an idle connection just as it was taken again.
            self.connect()
        else:
            self.fail(error)


class ConnectionPool:
    """The connections to one worker. `on_refused` is told when it refuses a new one.

    `head_lines` are the headers every request to this worker begins with. A connection breaks when
    the other host acknowledges nothing for `unacknowledged_s`: a host that is gone, or a network
    that is cut, cannot say so.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        access: WorkerAccess = PLAIN,
        connect_timeout_s: float = 5.0,
        unacknowledged_s: float = 15.0,
        on_refused: Callable[[], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.head_lines = f"host: {authority}\r\n".encode()
        if access.api_key is not None:
            self.head_lines += f"authorization: Bearer {access.api_key}\r\n".encode()
        self._tls = access.tls
        self._connect_timeout_s = connect_timeout_s
        self._unacknowledged_s = unacknowledged_s
        self._on_refused = on_refused
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()

    @property
    def scheme(self) -> str:
        """What its URL begins with."""
        return "http" if self._tls is None else "https"

    @property
    def num_connections(self) -> int:
        """Connections that are open, idle or not."""
        return len(self._open)

    def send(self, request: Pieces, sink: ResponseSink) -> Exchange:
        """Send a request, given as byte pieces, and hand its answer to `sink`."""
        exchange = Exchange(self, request, sink)
        connection = self.take_idle()
        if connection is None:
            exchange.connect()
        else:
            exchange.travel_on(connection)
        return exchange

    def take_idle(self) -> UpstreamConnection | None:
        """A kept-alive connection, the one used last; None if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection."""
        where = f"{self.host}:{self.port}"
        connection = UpstreamConnection(self._freed, self._open.discard)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(
                loop.create_connection(lambda: connection, self.host, self.port, ssl=self._tls),
                self._connect_timeout_s,
            )
        except asyncio.TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {self._connect_timeout_s:g} s") from error
        except OSError as error:
            # Anything else may be our own trouble: no descriptors or no ports left.
            if isinstance(error, ConnectionRefusedError) and self._on_refused is not None:
                self._on_refused()
            todo = "; see router.worker_tls" if isinstance(error, ssl.SSLError) else ""
            raise Unreachable(f"no connection to {where}: {error}{todo}") from error
        if not connection.is_open:
            raise Unreachable(f"no connection to {where}: it closed as soon as it was made")
        self._open.add(connection)
        connection.expect_life(self._unacknowledged_s)
        return connection

    def look(self) -> tuple[bool, bool]:
        """Whether an answer is awaited, and whether a byte has come since the last look."""
        is_awaited = was_heard = False
        for connection in self._open:
            is_awaited = is_awaited or connection.is_awaited
            was_heard = was_heard or connection.was_heard
            connection.was_heard = False
        return is_awaited, was_heard

    def close(self) -> None:
        """Close every connection; exchanges under way hear that they broke."""
        self._idle.clear()
        for connection in tuple(self._open):
            connection.drop()

    def _freed(self, connection: UpstreamConnection) -> None:
        if len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.abandon()
