"""uvicorn's HTTP connection with what it has no bounds for: their number, and time.

Strangers may hold as many connections as there are, so a new one takes the place of the one that
has been sending its request for longest. A connection that serves a request keeps its place.
"""

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from conserve_sglang.serving.problems import problem_answer

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 16 * 1024
REQUEST_S = 10.0  # for a whole request, from its first byte on, or from the connection's beginning
KEEP_ALIVE_S = 5.0  # between an answer and the next request
STUCK_S = 30.0  # for a client to take what is written
LINGER_S = 1.0  # for it to read an answer whose request was not read to the end
MAX_DROPPED_BYTES = 1024 * 1024  # of that request, meanwhile
_UNREAD = (h11.IDLE, h11.SEND_BODY)
_LATE = problem_answer(
    408, "request_too_slow", f"The request did not arrive within {REQUEST_S:g} s. Send it again."
)
_FULL = problem_answer(
    503, "too_many_connections", f"All {MAX_CONNECTIONS} connections are in use. Try again."
)
_HEAD_TOO_LARGE = problem_answer(
    431, "headers_too_large", f"The request's head is over {MAX_HEAD_BYTES} bytes."
)
_BAD_REQUEST = problem_answer(400, "bad_request", "This is no HTTP/1.1 request.")


class BoundedProtocol(H11Protocol):
    """One connection of a control port."""

    waits_since_s = 0.0  # when the connection began, or its last answer was whole
    _ending: "_Ending"
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _has_begun = False  # something of the request that is expected is there

    @property
    def is_waiting(self) -> bool:
        """Whether the end of a request is being waited for, and nothing is being answered."""
        return self.conn.their_state in _UNREAD and not self._ending.is_closing()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.access_log = False  # a path may name a conversation
        self.waits_since_s = self.loop.time()
        self._ending = _Ending(self, transport)
        is_full = len(self.connections) >= MAX_CONNECTIONS and not self._make_room()
        if len(self.connections) >= 2 * MAX_CONNECTIONS:  # those that are being told so, too
            transport.abort()
        super().connection_made(self._ending)  # type: ignore[arg-type]
        if is_full:
            self._refuse(_FULL)
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        self.resume_writing()
        self._ending.is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending.is_closing():
            self._ending.drop(len(data))
            return
        if self.conn.their_state in _UNREAD:
            self._has_begun = True
            self._expect()
        super().data_received(data)
        if not self.is_waiting:
            self._expect_no_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(STUCK_S, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def abort(self) -> None:
        """Close at once."""
        self._ending.abort()

    # uvicorn

    def on_response_complete(self) -> None:
        self.waits_since_s = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is answered in JSON, too."""
        error = sys.exc_info()[1]
        is_head = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._refuse(_HEAD_TOO_LARGE if is_head else _BAD_REQUEST)

    # inside

    def _make_room(self) -> bool:
        """Close the connection that has waited for its request the longest, if there is one."""
        waiting = [
            each
            for each in self.connections
            if isinstance(each, BoundedProtocol) and each.is_waiting
        ]
        if not waiting:
            return False
        min(waiting, key=lambda each: each.waits_since_s).abort()
        return True

    def _expect(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_S, self._late)

    def _expect_no_more(self) -> None:
        self._has_begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.is_waiting:
            self._refuse(_LATE if self._has_begun else b"")

    def _refuse(self, answer: bytes) -> None:
        """Say why, unless an answer has begun, and close."""
        if self._ending.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = cycle and cycle.response_started and not cycle.response_complete
        if answer and not is_answering:
            self._ending.write(answer)
        self._ending.close()


class _Ending:
    """A transport that, closed while a request is unread, leaves time to read its answer."""

    def __init__(self, protocol: BoundedProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._linger: asyncio.TimerHandle | None = None
        self._num_dropped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more is read of it."""
        return self._linger is not None or self._transport.is_closing()

    def close(self) -> None:
        """Let what was written leave; closing at once with bytes unread would reset it."""
        if self.is_closing():
            return
        is_unread = self._protocol.conn.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        most_s = STUCK_S if self._transport.get_write_buffer_size() else LINGER_S
        self._linger = self._protocol.loop.call_later(most_s, self._transport.abort)
        if is_unread and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def drop(self, num_bytes: int) -> None:
        """Bytes that nobody reads came in."""
        self._num_dropped += num_bytes
        if self._num_dropped > MAX_DROPPED_BYTES:
            self._transport.pause_reading()

    def is_over(self) -> None:
        """The connection is lost."""
        if self._linger is not None:
            self._linger.cancel()
