"""One client's connection: HTTP/1.1 requests in, answers out, strictly in order.

Reading goes on while an answer is under way, because that is how a client's leaving is noticed;
what arrives meanwhile is kept, up to a bound, and handled when its turn comes.
"""

import asyncio
from collections.abc import Callable

from conserve_sglang.router.access_log import AccessLog
from conserve_sglang.router.admission import TOO_MANY_BYTES, HeldBytes
from conserve_sglang.router.caller import Caller
from conserve_sglang.router.headers import answer_head
from conserve_sglang.router.patience import Patience
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.request_reader import TOO_SLOW, Request
from conserve_sglang.workers.outbox import Outbox
from conserve_sglang.workers.upstream import Headers

MAX_KEPT_BYTES = 256 * 1024
LINGER_S = 2.0


class ClientConnection(Caller):
    """Reads requests, hands them to `serve` one at a time, and writes their answers.

    It is one of `clients` as long as it is open; whoever makes it may count it from before on.
    """

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_clients",
        "_head",
        "_held",
        "_held_bytes",
        "_is_chunked",
        "_is_closing",
        "_is_judged",
        "_is_stepping",
        "_judge",
        "_outbox",
        "_patience",
        "_serve",
        "_takes_events",
    )

    def __init__(
        self,
        serve: "Callable[[Request, ClientConnection], None]",
        clients: "set[ClientConnection]",
        max_body_bytes: int,
        held: HeldBytes,
        judge: "Callable[[bytes, Headers, ClientConnection], Problem | None] | None" = None,
        access: AccessLog | None = None,
    ) -> None:
        super().__init__(max_body_bytes, access)
        self._serve = serve
        self._judge = judge  # says of a request by its head why it may not come in
        self._is_judged = False  # the request that is being read
        self._clients = clients
        self._held = held  # of all connections
        self._held_bytes = 0  # of this one
        self._outbox: Outbox
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._is_stepping = False
        self._is_closing = False
        self._patience = Patience()
        self._head = b""
        self._is_chunked = False
        self._takes_events = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._outbox = Outbox(transport)
        self._clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        if self._transport is not None:  # else its handshake failed
            self._outbox.forget()
        self._backlog.clear()
        self._reader.ready.clear()
        self._hold(0)
        self._clients.discard(self)
        asker, self.asker = self.asker, None
        if asker is not None:
            asker.client_gone()

    def pause_writing(self) -> None:
        self._patience.unsent_bytes = self._transport.get_write_buffer_size()
        if self.asker is not None:
            self.asker.client_slow()

    def resume_writing(self) -> None:
        self._patience.unsent_bytes = self._patience.num_stuck = 0
        if self.asker is not None:
            self.asker.client_ready()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._hold(self._held_bytes + len(data))
        if self._request is None:
            if self._held.is_over:
                self._refuse(TOO_MANY_BYTES, self._reader.method or _method_in(data))
                return
            self._patience.num_quiet = 0
            self._reader.feed(data)
            self._step()
            return
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._backlog_bytes > MAX_KEPT_BYTES:
            self._transport.pause_reading()

    def _hold(self, num_bytes: int) -> None:
        """State how many bytes of requests there are of this connection."""
        self._held.num_bytes += num_bytes - self._held_bytes
        self._held_bytes = num_bytes

    def take_on(self, num_bytes: int) -> bool:
        """Count bytes that a request has beside those its client sent, until it is answered;
        False if the router has too many."""
        self._hold(self._held_bytes + num_bytes)
        return not self._held.is_over

    # one request after the other

    def _step(self) -> None:
        """Serve what is there, until something has to be waited for."""
        if self._is_stepping:
            return
        self._is_stepping = True
        reader = self._reader
        while self._request is None and not self._is_closing:
            if reader.ready:
                self._request = reader.ready.popleft()
                self._patience.num_head = self._patience.num_request = 0
                self._is_judged = False
                self._serve(self._request, self)
            elif reader.refusal is not None:
                self._refuse(reader.refusal, reader.method)
            elif self._judge is not None and not self._is_judged and reader.head is not None:
                self._judge_head(*reader.head)
            elif reader.waits_for_continue:
                reader.owes_continue = False
                self._outbox.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif self._backlog:
                self._read_backlog()
            else:
                break
        self._is_stepping = False

    def _judge_head(self, target: bytes, headers: Headers) -> None:
        """Before more of a body is taken in, see whether its client may come in at all."""
        self._is_judged = True
        problem = None if self._judge is None else self._judge(target, headers, self)
        if problem is not None:
            self._refuse(problem, self._reader.method)

    def _read_backlog(self) -> None:
        data = b"".join(self._backlog)
        self._backlog.clear()
        if self._backlog_bytes > MAX_KEPT_BYTES:
            self._transport.resume_reading()
        self._backlog_bytes = 0
        self._reader.feed(data)

    def _refuse(self, problem: Problem, method: str) -> None:
        """Answer what cannot be read further, then let the client finish sending before closing.

        Closing with bytes unread would reset the connection and lose the answer on its way.
        """
        target, headers = self._reader.begun
        self._request = Request(method, target, headers, b"", is_http11=True, keeps_alive=False)
        self._is_closing = True
        if not self._is_judged:
            self.last_headers = None  # nobody knows whose it is
        self._write_problem(problem, b"")
        asyncio.get_running_loop().call_later(LINGER_S, self._outbox.drop)

    # answering

    @property
    def is_waiting(self) -> bool:
        """Whether there is a request whose answer is not whole."""
        return self._request is not None and not self._is_closing

    def begin(self, status: int, headers: Headers, extra: bytes, length: int | None) -> None:
        """Set the head of the answer; it leaves with the first body bytes."""
        request = self._request
        if request is None:
            return
        extra += self.request_line or self._named()
        if length is not None:
            extra += b"content-length: %d\r\n" % length
        elif request.is_http11:
            extra += b"transfer-encoding: chunked\r\n"
        else:
            request.keeps_alive = False
        if not request.keeps_alive:
            extra += b"connection: close\r\n"
        self._is_chunked = length is None and request.is_http11
        self._takes_events = length is None  # else what is told beyond the length is lost
        self._head = answer_head(status, headers, extra)

    def send(self, data: bytes, is_last: bool) -> None:
        """Write body bytes; the last ones end the request."""
        if self._request is None:
            return
        if self._is_chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
                if not (is_last or self._head):  # the next event of a stream, as nearly always
                    self._outbox.write(data)
                    return
            if is_last:
                data += b"0\r\n\r\n"
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self._outbox.write(data)
        if is_last:
            self._finish()

    def answer(
        self,
        status: int,
        headers: Headers,
        body: bytes,
        extra: bytes = b"",
        code: str | None = None,
    ) -> None:
        """A whole answer at once. One to HEAD says how long its body would be, and has none.

        `code` is that of an error.
        """
        self.begin(status, headers, extra, len(body))
        self._log(status, code)
        self.send(b"" if self._is_head else body, True)

    def answer_problem(self, problem: Problem, extra: bytes = b"") -> None:
        """An error as the whole answer."""
        if self._request is not None:
            self._write_problem(problem, extra)
            self._finish()

    def break_off(self, event: bytes) -> None:
        """End an answer that cannot be completed: with an event that says so where one fits,
        else without its proper end, so that nobody takes it for whole."""
        if self._request is None:
            return
        self._request.keeps_alive = False
        if event and self._takes_events:
            self.send(event, True)
        else:
            self._is_closing = True
            self.asker = None
            self._outbox.drop()

    def stop(self, problem: Problem) -> None:
        """Close; a request that is open, and no turn, is answered with why."""
        if self._is_closing or self._transport is None:
            return
        if self._request is not None:
            asker, self.asker = self.asker, None
            if asker is not None:
                asker.client_gone()
            self._request.keeps_alive = False
            self.answer_problem(problem)
        elif self._reader.is_in_request:
            self._refuse(problem, self._reader.method)
        else:
            self.close()

    def close(self) -> None:
        """Stop: close as soon as nothing is being answered."""
        if self._request is None:
            self._is_closing = True
            if self._transport is not None:
                self._outbox.close()
        else:
            self._request.keeps_alive = False

    def sweep(self) -> None:
        """Called every `SWEEP_INTERVAL_S`: let go of a client that sends nothing, never ends its
        request, or does not take its answer."""
        if self._transport is None:
            return  # its handshake is not over, and has a time of its own
        patience = self._patience
        if patience.unsent_bytes and patience.is_stuck(self._transport.get_write_buffer_size()):
            self.abort()
        elif self._is_closing:
            return
        elif self._request is not None:
            patience.num_quiet = 0
        elif patience.is_overdue(self._reader):
            self._refuse(TOO_SLOW, self._reader.method)
        elif patience.is_quiet:
            self.close()

    def abort(self) -> None:
        """Stop at once."""
        if self._transport is not None:
            self._outbox.drop()

    def _write_problem(self, problem: Problem, extra: bytes) -> None:
        voice = self.voice
        if voice is None:
            body = problem.to_json()
        else:
            body = voice.problem(problem)
            extra += voice.header_lines
        self.begin(problem.status, problem.headers(), extra, len(body))
        self._log(problem.status, problem.code)
        self._outbox.write(self._head if self._is_head else self._head + body)
        self._head = b""

    def _finish(self) -> None:
        request, self._request = self._request, None
        self.asker = self.voice = None
        self.request_line = b""
        self._is_chunked = False
        self._hold(self._backlog_bytes + self._reader.num_bytes)
        if request is not None and not request.keeps_alive:
            self._is_closing = True
            self._outbox.close()
        elif not self._is_stepping:
            self._step()


def _method_in(data: bytes) -> str:
    """The method of a request of which these are the first bytes, as far as it matters here."""
    return "HEAD" if data[:64].lstrip(b"\r\n").startswith(b"HEAD ") else ""
