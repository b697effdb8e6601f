"""Asks processes over HTTP whether they are ready, and tells the router what happened."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from conserve_sglang.launcher.pinned import any_certificate, is_shown

_MOST_HEADER_BYTES = 64 * 1024


async def is_healthy(
    host: str, port: int, *, timeout_s: float, path: str = "/health", is_tls: bool = False
) -> bool:
    """Whether a GET of `path` answers 200 within the time allowed.

    With TLS any certificate will do: nothing is told that is not for everybody.
    """
    tls = any_certificate() if is_tls else None
    return await _status(_request("GET", path, host, port), host, port, timeout_s, tls) == 200


async def wait_healthy(
    ask: Callable[[], Awaitable[bool]], *, timeout_s: float, interval_s: float
) -> bool:
    """Ask until it is healthy; False when `timeout_s` has passed before."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await ask():
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
    cert_file: str | None = None,
) -> bool:
    """Tell the router that a worker is `lost` or `up`; whether it took the news.

    With `cert_file` it speaks TLS and shows that very certificate, or is told nothing.
    """
    path = f"/admin/workers/{quote(worker, safe='')}/{what}"
    request = _request("POST", path, *control, key=admin_key)
    tls = None if cert_file is None else any_certificate()
    status = await _status(request, *control, timeout_s, tls, cert_file)
    return status is not None and 200 <= status < 300


def _request(method: str, path: str, host: str, port: int, *, key: str | None = None) -> bytes:
    name = f"[{host}]" if ":" in host else host
    authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {name}:{port}\r\nContent-Length: 0\r\n"
        f"{authorization}Connection: close\r\n\r\n"
    ).encode()


async def _status(
    request: bytes,
    host: str,
    port: int,
    timeout_s: float,
    tls: ssl.SSLContext | None,
    cert_file: str | None = None,
) -> int | None:
    """The status of one request on a connection of its own; None without an HTTP answer."""
    try:
        return await asyncio.wait_for(_exchange(request, host, port, tls, cert_file), timeout_s)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError):
        return None


async def _exchange(
    request: bytes, host: str, port: int, tls: ssl.SSLContext | None, cert_file: str | None
) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=_MOST_HEADER_BYTES, ssl=tls)
    try:
        if cert_file is not None:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if not is_shown(cert_file, shown):
                raise ValueError("another certificate than the router's")
        writer.write(request)
        await writer.drain()
        protocol, status, *_ = (await reader.readline()).decode("latin-1").split() or ("", "")
        if not protocol.startswith("HTTP/"):
            raise ValueError("not an HTTP answer")
        return int(status)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
