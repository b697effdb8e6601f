"""One HTTP/1.1 connection to a worker: sends a request and hands on the answer's bytes.

The answer is parsed by httptools only as far as heads and framing go; body bytes are handed on
as they came, one call for each piece read from the socket.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import httptools

from conserve_sglang.core.errors import Unreachable, WorkerError
from conserve_sglang.workers.known_head import Headers, KnownHead, known_head
from conserve_sglang.workers.outbox import Outbox

__all__ = ["Headers", "Pieces", "ResponseSink", "UpstreamConnection"]

Pieces = Sequence[bytes | memoryview]
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_VARYING = frozenset({b"date"})
_MAX_LEARNED = 16  # heads in a row that no other answer had


class ResponseSink(Protocol):
    """Takes one answer: a head, body pieces of which the last is marked, or an error."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; header names are lower case."""
        ...

    def on_body(self, data: bytes, is_last: bool) -> None:
        """The next body bytes; `data` may be empty when `is_last`."""
        ...

    def on_broken(self, error: WorkerError) -> None:
        """There will be no (rest of the) answer."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """Carries one request at a time. `on_free` is told when it may carry the next."""

    __slots__ = (
        "_head_is_due",
        "_headers",
        "_is_complete",
        "_is_paused",
        "_keeps_alive",
        "_known",
        "_num_learned",
        "_on_closed",
        "_on_free",
        "_on_lost",
        "_outbox",
        "_parser",
        "_parts",
        "_sink",
        "_status",
        "_transport",
        "has_answer_begun",
        "is_open",
        "num_requests",
        "was_heard",
    )

    def __init__(
        self,
        on_free: Callable[["UpstreamConnection"], None],
        on_closed: Callable[["UpstreamConnection"], None],
    ) -> None:
        self._on_free = on_free
        self._on_closed = on_closed
        self._on_lost: Callable[[UpstreamConnection, WorkerError], None] | None = None
        self._transport: Any = None
        self._outbox: Outbox
        self._parser: Any = None
        self._sink: ResponseSink | None = None
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._head_is_due = False
        self._is_complete = False
        self._is_paused = False
        self._keeps_alive = False
        self._known: KnownHead | None = None
        self._num_learned = 0
        self.has_answer_begun = False
        self.is_open = False
        self.num_requests = 0
        self.was_heard = False

    @property
    def is_awaited(self) -> bool:
        """Whether it has a request to answer, and is read."""
        return self._sink is not None and not self._is_paused

    def expect_life(self, unacknowledged_s: float) -> None:
        """Have the kernel break the connection when the other host does not acknowledge."""
        bound = self._transport.get_extra_info("socket")
        if bound is None:  # it is closing already, and will say so
            return
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", max(1, round(unacknowledged_s / 3))),
            ("TCP_KEEPINTVL", max(1, round(unacknowledged_s / 6))),
            ("TCP_USER_TIMEOUT", round(unacknowledged_s * 1000)),
        ):
            if hasattr(socket, name):  # Linux has them all
                bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(
        self,
        request: Pieces,
        sink: ResponseSink,
        on_lost: Callable[["UpstreamConnection", WorkerError], None],
    ) -> None:
        """Send a request; `on_lost` is told if the connection goes before the answer is whole."""
        self._sink = sink
        self._on_lost = on_lost
        self.has_answer_begun = False
        self.num_requests += 1
        self._outbox.write_all(request)

    def abandon(self) -> None:
        """Close at once without telling the sink; SGLang aborts a request whose client is gone."""
        self._sink = None
        self._on_lost = None
        self.is_open = False
        if self._transport is not None:
            self._outbox.drop()

    def drop(self) -> None:
        """Close at once and tell whoever waits for an answer."""
        self._lose(Unreachable("the worker was given up"))

    def pause(self) -> None:
        """Stop reading until `resume`, because whoever reads the answer is slow."""
        if self.is_open and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            if self.is_open:
                self._transport.resume_reading()

    def follow_stream(self) -> None:
        """Acknowledge every second piece, not each: a fifth of what it costs to pass one on.

        Linux returns to its own ways once two pieces take longer than 40 ms. A worker that waits
        for acknowledgements (no TCP_NODELAY; SGLang's servers have it) waits that long once.
        """
        if hasattr(socket, "TCP_QUICKACK"):
            bound = self._transport.get_extra_info("socket")
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._outbox = Outbox(transport)
        self._parser = httptools.HttpResponseParser(self)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self.abandon()  # bytes nobody asked for: out of step, never to be reused
            return
        self.was_heard = True
        is_first = not self.has_answer_begun
        if is_first and self._is_known(data, sink):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(Unreachable(f"the worker's answer is not HTTP/1.1: {error}"))
            return
        if self._head_is_due:
            self._head_is_due = False
            sink.on_head(self._status, self._headers)
            if self._sink is not sink:
                return
        if self._is_complete:
            if is_first and self._keeps_alive and self._status == 200:
                self._learn(data)
            self._finish(sink, self._take_parts())
        elif self._parts:
            parts = self._parts
            sink.on_body(parts.pop() if len(parts) == 1 else self._take_parts(), False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._outbox.forget()
        sink = self._sink
        has_head = self._status > 0 and not _FRAMING.intersection(dict(self._headers))
        if sink is not None and exc is None and self.has_answer_begun and has_head:
            self._sink = self._on_lost = None  # a body without framing ends with the connection
            sink.on_body(self._take_parts(), True)
        elif sink is not None:
            reason = f" ({exc})" if exc else ""
            self._lose(Unreachable(f"the worker closed the connection{reason}"))
        self._on_closed(self)

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._headers = []
        self._status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # an interim answer is followed by the real one
            self._status = status
            self._head_is_due = True

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self._is_complete = self._status >= 200
        # To be asked now: a moment later the parser thinks of the next answer.
        self._keeps_alive = self._parser.should_keep_alive()

    # inside

    def _is_known(self, data: bytes, sink: ResponseSink) -> bool:
        """Whether an answer's first bytes are all of it, behind a known head; it is told then."""
        self.has_answer_begun = True
        known = self._known
        at = -1 if known is None else known.match(data)
        if known is None or at < 0 or len(data) - at != known.length:
            return False
        self._num_learned = 0
        sink.on_head(200, known.headers)
        if self._sink is sink:
            self._finish(sink, data[at:])
        return True

    def _learn(self, data: bytes) -> None:
        """Know the head of an answer that came in one piece."""
        if self._num_learned < _MAX_LEARNED:
            self._num_learned += 1
            self._known = known_head(data, self._headers, _VARYING) or self._known

    def _take_parts(self) -> bytes:
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    def _finish(self, sink: ResponseSink, data: bytes) -> None:
        self._sink = self._on_lost = None
        self._is_complete = False
        self.resume()
        if self._keeps_alive:
            self._on_free(self)
        else:
            self.is_open = False
            self._outbox.close()
        sink.on_body(data, True)

    def _lose(self, error: WorkerError) -> None:
        on_lost = self._on_lost
        self._sink = self._on_lost = None
        if self.is_open:
            self.is_open = False
            self._outbox.drop()
        if on_lost is not None:
            on_lost(self, error)
