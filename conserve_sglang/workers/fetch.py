"""A whole answer at once, for the few small requests that are no turns."""

import asyncio

from conserve_sglang.core.errors import TimedOut, Unreachable, WorkerError
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.upstream import Headers

MAX_ANSWER_BYTES = 4 * 1024 * 1024


class _Gather:
    """Collects an answer into a future."""

    def __init__(self, future: "asyncio.Future[tuple[int, bytes]]") -> None:
        self._future = future
        self._status = 0
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes, is_last: bool) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > MAX_ANSWER_BYTES:
            self.on_broken(Unreachable(f"an answer of more than {MAX_ANSWER_BYTES} bytes"))
            return
        self._parts.append(data)
        if is_last and not self._future.done():
            self._future.set_result((self._status, b"".join(self._parts)))

    def on_broken(self, error: WorkerError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


async def fetch(
    pool: ConnectionPool,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    timeout_s: float = 5.0,
) -> tuple[int, bytes]:
    """The status and body of one request; raises `Unreachable` or `TimedOut`."""
    head = f"{method} {path} HTTP/1.1\r\n".encode() + pool.head_lines
    if body is not None:
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    exchange = pool.send([head + b"\r\n" + (body or b"")], _Gather(future))
    try:
        return await asyncio.wait_for(future, timeout_s)
    except asyncio.TimeoutError as error:
        raise TimedOut(f"{method} {path}: no answer in {timeout_s:g} s") from error
    finally:
        if future.done() and not future.cancelled() and future.exception() is None:
            exchange.close()
        else:
            exchange.abort()
