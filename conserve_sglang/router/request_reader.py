"""Reads HTTP/1.1 requests off a connection's bytes, within bounds."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import httptools

from conserve_sglang.router.headers import CLAUDE_AGENT_HEADER, DEADLINE_HEADER, NAMING_HEADERS
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.request_ids import REQUEST_ID_HEADER
from conserve_sglang.workers.known_head import KnownHead, known_head
from conserve_sglang.workers.upstream import Headers

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Chunk sizes, chunk extensions and trailers say nothing here: a body of one-byte chunks needs five
# bytes beside each, and whoever sends more than this keeps the router busy and no more.
MAX_FRAMING_BYTES = 64 * 1024
_FRAMING_BYTES_PER_BODY_BYTE = 5

_MALFORMED = Problem(
    status=400,
    code="malformed_request",
    message="This is not an HTTP/1.1 request the router can read. Send plain HTTP/1.1.",
)
TOO_SLOW = Problem(
    status=408,
    code="request_timeout",
    message="The request did not arrive whole in time. Send it again, all at once.",
)
_HEAD_TOO_LARGE = Problem(
    status=431,
    code="headers_too_large",
    message=f"The request's head is larger than {MAX_HEAD_BYTES} bytes, or has more than"
    f" {MAX_HEADERS} headers. Send fewer.",
)
_ONE_HOST = Problem(
    status=400,
    code="malformed_request",
    message="An HTTP/1.1 request names its host once. Send exactly one Host header.",
)
_UNKNOWN_CODING = Problem(
    status=501,
    code="transfer_encoding_unknown",
    message="The only transfer encoding read here is 'chunked'. Send the body plain or chunked.",
)
_TOO_MUCH_FRAMING = Problem(
    status=400,
    code="malformed_request",
    message="The body's chunks carry far more framing than data. Send larger chunks.",
)

_NOTED = frozenset({b"host", b"transfer-encoding", b"expect"})
_VARYING = frozenset(
    {*NAMING_HEADERS, CLAUDE_AGENT_HEADER, DEADLINE_HEADER, b"traceparent", REQUEST_ID_HEADER}
)
_MAX_LEARNED = 16  # heads in a row that no other request had


@dataclass(slots=True, init=False)
class Request:
    """One request as it came; header names are lower case."""

    method: str
    target: bytes
    headers: Headers
    body: bytes
    is_http11: bool
    keeps_alive: bool

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: bytes,
        is_http11: bool,
        keeps_alive: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.is_http11 = is_http11
        self.keeps_alive = keeps_alive


class RequestReader:
    """Turns bytes into requests: `ready` are whole; `refusal` says why reading had to end."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_framing_bytes",
        "_has_begun",
        "_head_bytes",
        "_headers",
        "_is_in_head",
        "_known",
        "_last",
        "_length",
        "_max_body_bytes",
        "_method",
        "_num_hosts",
        "_num_learned",
        "_other",
        "_other_last",
        "_parser",
        "_target",
        "owes_continue",
        "ready",
        "refusal",
    )

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._parser: Any = httptools.HttpRequestParser(self)
        self.ready: deque[Request] = deque()
        self.refusal: Problem | None = None
        self.owes_continue = False
        self._known: KnownHead | None = None
        self._last: Request  # with the head that is known
        self._other: KnownHead | None = None  # known before, and its request
        self._other_last: Request
        self._num_learned = 0
        self._start()

    def _start(self) -> None:
        self._method = ""
        self._target = b""
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._framing_bytes = 0
        self._num_hosts = 0
        self._length: bytes | None = None
        self._has_begun = False
        self._is_in_head = True

    @property
    def waits_for_continue(self) -> bool:
        """The client holds its body back until it is told to go on."""
        return self.owes_continue and not self._is_in_head

    @property
    def is_in_head(self) -> bool:
        """A request has begun, and its head is not whole."""
        return self._has_begun and self._is_in_head

    @property
    def head(self) -> tuple[bytes, Headers] | None:
        """Target and headers of a request whose head is whole, and whose body is not."""
        return None if self._is_in_head else (self._target, self._headers)

    @property
    def begun(self) -> tuple[bytes, Headers]:
        """Target and headers, as far as they have come."""
        return self._target, self._headers

    @property
    def method(self) -> str:
        """Of the request that is being read, or was refused; empty if it is not known."""
        return self._method

    @property
    def is_in_request(self) -> bool:
        """A request has begun and is not whole."""
        return self._has_begun

    @property
    def num_bytes(self) -> int:
        """What has been read of requests that nobody took yet, heads of whole ones left out."""
        num_bytes = self._head_bytes + self._body_bytes
        return num_bytes + sum(len(each.body) for each in self.ready) if self.ready else num_bytes

    def feed(self, data: bytes) -> None:
        """Read on."""
        is_fresh = not self._has_begun
        known = self._known
        if known is not None and is_fresh and self.refusal is None:
            at = known.match(data)
            other = self._other
            if at < 0 and other is not None:  # some clients ask for two things by turns
                self._known, self._other = other, known
                self._last, self._other_last = self._other_last, self._last
                known = other
                at = known.match(data)
            if at >= 0 and len(data) - at == known.length <= self._max_body_bytes:
                self._num_learned = 0
                last = self._last
                again = Request(last.method, last.target, known.headers, data[at:], True, True)
                self.ready.append(again)
                return
        num_ready = len(self.ready)
        self._parse(data)
        if is_fresh and len(self.ready) == num_ready + 1 and self._num_learned < _MAX_LEARNED:
            self._learn(data, self.ready[-1])

    def _learn(self, data: bytes, request: Request) -> None:
        """Know the head of a request that came in one piece, with nothing before or behind it."""
        if not request.keeps_alive or self.refusal is not None:
            return
        self._num_learned += 1
        known = known_head(data, request.headers, _VARYING)
        if known is not None:
            if self._known is not None:
                self._other, self._other_last = self._known, self._last
            self._known = known
            self._last = replace(request, body=b"")

    def _parse(self, data: bytes) -> None:
        num_ready = len(self.ready)
        num_body_bytes = self._body_bytes
        was_in_body = not self._is_in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.refusal = self.refusal or _MALFORMED
        if self._is_in_head and len(self.ready) == num_ready:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refusal = self.refusal or _HEAD_TOO_LARGE
        elif was_in_body and len(self.ready) == num_ready:
            self._framing_bytes += len(data) - (self._body_bytes - num_body_bytes)
            allowed = MAX_FRAMING_BYTES + _FRAMING_BYTES_PER_BODY_BYTE * self._body_bytes
            if self._framing_bytes > allowed:
                self.refusal = self.refusal or _TOO_MUCH_FRAMING

    def _read_on_without_upgrade(self, data: bytes) -> None:
        """Some clients offer HTTP/2 with their first request. The offer may be ignored, but the
        parser takes what follows such a head for another protocol: it is shown the head without.
        """
        names = {name for name, _ in self._headers}
        method = self._parser.get_method()
        if self.refusal is not None or b"upgrade" not in names or method == b"CONNECT":
            self.refusal = self.refusal or _MALFORMED
            return
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (method, self._target, version)]
        lines += [b"%b: %b\r\n" % line for line in self._headers if line[0] != b"upgrade"]
        if self._length is not None:
            lines.append(b"content-length: %b\r\n" % self._length)
        self._parser = httptools.HttpRequestParser(self)
        self._start()
        self.feed(b"".join([*lines, b"\r\n", data]))

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._has_begun = True

    def on_url(self, url: bytes) -> None:
        if not self._target and self.refusal is None:
            self._method = self._parser.get_method().decode()
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # a trailer: nobody asked for it, and it must not pass for a header
        name = name.lower()
        if name == b"content-length":
            self._length = value
            if value.isdigit():
                self._check_body_bytes(int(value))
            return  # the only header that tells two requests of one client apart
        self._headers.append((name, value))
        if name in _NOTED:
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._num_hosts += 1
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                self.refusal = self.refusal or _UNKNOWN_CODING
        elif value.lower() == b"100-continue":
            self.owes_continue = True

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if len(self._headers) > MAX_HEADERS:
            self.refusal = self.refusal or _HEAD_TOO_LARGE
        if self._num_hosts != 1 and self._parser.get_http_version() == "1.1":
            self.refusal = self.refusal or _ONE_HOST

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        self._check_body_bytes(self._body_bytes)
        if self.refusal is None:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self.refusal is not None or self._parser.should_upgrade():
            return
        self.owes_continue = False
        is_http11 = self._parser.get_http_version() == "1.1"
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.ready.append(
            Request(
                self._method,
                self._target,
                self._headers,
                body,
                is_http11,
                is_http11 and self._parser.should_keep_alive(),
            )
        )
        self._start()

    def _check_body_bytes(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes and self.refusal is None:
            self.refusal = Problem(
                status=413,
                code="body_too_large",
                message=f"The request body is larger than {self._max_body_bytes} bytes."
                " Send less, or raise router.max_body_bytes in the tier map.",
            )
