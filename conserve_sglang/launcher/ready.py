"""Asks processes over HTTP whether they are ready, and tells the router what happened."""

import asyncio
import contextlib
from urllib.parse import quote

_MOST_HEADER_BYTES = 64 * 1024


async def is_healthy(host: str, port: int, *, timeout_s: float) -> bool:
    """Whether `GET /health` answers 200 within the time allowed."""
    return await _status("GET", host, port, "/health", timeout_s=timeout_s) == 200


async def wait_healthy(
    host: str, port: int, *, timeout_s: float, interval_s: float, probe_timeout_s: float
) -> bool:
    """Ask until it is healthy; False when `timeout_s` has passed before."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await is_healthy(host, port, timeout_s=probe_timeout_s):
        if loop.time() + interval_s > deadline:
            return False
        await asyncio.sleep(interval_s)
    return True


async def tell_router(
    control: tuple[str, int],
    worker: str,
    what: str,
    *,
    timeout_s: float,
    admin_key: str | None = None,
) -> bool:
    """Tell the router that a worker is `lost` or `up`; whether it took the news."""
    path = f"/admin/workers/{quote(worker, safe='')}/{what}"
    status = await _status("POST", *control, path, timeout_s=timeout_s, key=admin_key)
    return status is not None and 200 <= status < 300


async def _status(
    method: str, host: str, port: int, path: str, *, timeout_s: float, key: str | None = None
) -> int | None:
    """The status of one request on a connection of its own; None without an HTTP answer."""
    try:
        return await asyncio.wait_for(_exchange(method, host, port, path, key), timeout_s)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError):
        return None


async def _exchange(method: str, host: str, port: int, path: str, key: str | None) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=_MOST_HEADER_BYTES)
    try:
        name = f"[{host}]" if ":" in host else host
        authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {name}:{port}\r\nContent-Length: 0\r\n"
            f"{authorization}Connection: close\r\n\r\n".encode()
        )
        await writer.drain()
        protocol, status, *_ = (await reader.readline()).decode("latin-1").split() or ("", "")
        if not protocol.startswith("HTTP/"):
            raise ValueError("not an HTTP answer")
        return int(status)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
