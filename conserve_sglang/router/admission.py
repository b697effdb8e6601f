"""What the clients' side takes in at all: bytes of requests, and connections.

Both bounds count for one process. What is refused here costs next to nothing: no request is read.
"""

import asyncio
from typing import Any, ClassVar

from conserve_sglang.router.access_log import AccessLog, peer_of
from conserve_sglang.router.headers import answer_head
from conserve_sglang.router.problem import Problem

LINGER_S = 1.0
MAX_LINGERING = 1024

TOO_MANY_BYTES = Problem(
    status=503,
    code="router_busy",
    message="The router holds as many bytes of requests as it may. Try again.",
    retry_after_s=1,
)
_TOO_MANY_CONNECTIONS = Problem(
    status=503,
    code="too_many_connections",
    message="The router has as many connections as it may. Use the ones you have, or try again.",
    retry_after_s=1,
)


class HeldBytes:
    """Bytes of requests in memory, of all connections: being read, waiting, or being answered."""

    __slots__ = ("max_bytes", "num_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether no more should be taken in."""
        return self.num_bytes > self.max_bytes


class TurnedAway(asyncio.Protocol):
    """A connection too many: told so at once, and closed when its client has had time to read it.

    Closing while the client still sends would reset the connection and lose the answer.
    """

    num_lingering: ClassVar[int] = 0

    def __init__(self, access: AccessLog | None = None) -> None:
        self._access = access
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if TurnedAway.num_lingering >= MAX_LINGERING:
            transport.abort()
            return
        TurnedAway.num_lingering += 1
        transport.write(_answer())
        if self._access is not None:
            problem = _TOO_MANY_CONNECTIONS
            self._access.turned_away(problem.status, problem.code, peer_of(transport))
        if transport.can_write_eof():
            transport.write_eof()
        loop = asyncio.get_running_loop()
        self._linger = loop.call_later(LINGER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            TurnedAway.num_lingering -= 1
            self._linger.cancel()
            self._linger = None


def _answer() -> bytes:
    body = _TOO_MANY_CONNECTIONS.to_json()
    extra = b"content-length: %d\r\nconnection: close\r\n" % len(body)
    return answer_head(503, _TOO_MANY_CONNECTIONS.headers(), extra) + body
