"""One end of the socket between the brain and a front."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from conserve_sglang.router.processes.talk import encoder

logger = logging.getLogger(__name__)

_LENGTH_BYTES = 4


class Link(asyncio.Protocol):
    """Sends what was said in one iteration of the loop together; hands messages on one by one.

    Both ends are ours, so nothing is bounded here: what travels was bounded where it came in.
    """

    def __init__(
        self,
        decoder: "msgspec.msgpack.Decoder[Any]",
        hear: Callable[[Any], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._hear = hear
        self._on_lost = on_lost
        self._transport: Any = None
        self._unsent: list[Any] = []
        self._unread = bytearray()
        self._call_soon = asyncio.get_running_loop().call_soon

    def say(self, message: Any) -> None:
        """Send a message when this iteration ends, or when there is a connection."""
        if not self._unsent and self._transport is not None:
            self._call_soon(self._send)
        self._unsent.append(message)

    def close(self) -> None:
        """Send what is there, and close."""
        self._send()
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        start = 0
        while len(unread) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES
            end += int.from_bytes(unread[start:end], "little")
            if len(unread) < end:
                break
            messages = self._decoder.decode(unread[start + _LENGTH_BYTES : end])
            start = end
            for message in messages:
                self._take(message)
        del unread[:start]

    # inside

    def _take(self, message: Any) -> None:
        try:
            self._hear(message)
        except Exception:
            # One message through a fault of ours: the other turns' go on.
            logger.exception("a message could not be taken: %s", type(message).__name__)

    def _send(self) -> None:
        if self._unsent and self._transport is not None:
            unsent, self._unsent = self._unsent, []
            data = encoder.encode(unsent)
            self._transport.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
