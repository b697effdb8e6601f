"""An ASGI application whose requests have a bounded body, read no sooner than it is asked for."""

from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserve_sglang.serving.problems import problem_body

MAX_BODY_BYTES = 64 * 1024
_TOO_LARGE = problem_body(
    413, "body_too_large", f"The body is over {MAX_BODY_BYTES} bytes. Send a smaller one."
)


class BoundedApp:
    """`app`, which is given no body over `MAX_BODY_BYTES`: its sender is told 413.

    After an answer to a request whose body was not read to its end the connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with suppress(ClientDisconnect):  # it has left, or was told why nobody listens to it
            await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer, on their way."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._declared_bytes = int(length) if length.isdigit() else 0
        self._is_read = not self._declared_bytes and b"transfer-encoding" not in headers
        self._receive = receive
        self._send = send
        self._num_bytes = 0
        self._is_refused = False

    async def receive(self) -> Message:
        """As ASGI has it; after a refusal it is as if the client had left."""
        if self._declared_bytes > MAX_BODY_BYTES:
            return await self._refuse()
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > MAX_BODY_BYTES:
                return await self._refuse()
            self._is_read = self._is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if self._is_refused:
            return
        if message["type"] == "http.response.start" and not self._is_read:
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        await self._send(message)

    async def _refuse(self) -> Message:
        """Answer 413; whatever else is said is dropped."""
        headers = [(b"content-type", b"application/json"),
                   (b"content-length", b"%d" % len(_TOO_LARGE))]  # fmt: skip
        await self.send({"type": "http.response.start", "status": 413, "headers": headers})
        await self.send({"type": "http.response.body", "body": _TOO_LARGE})
        self._is_refused = True
        return {"type": "http.disconnect"}
