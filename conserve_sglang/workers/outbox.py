"""Writes of one iteration of the event loop, handed to the socket together at its end.

A write at once wakes the reader at the other end, which finds one message, answers it and falls
asleep again, so that each message pays for a wake-up. Gathered writes come back to back.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

Piece = bytes | memoryview


class Outbox:
    """What is to be written on one transport. `close` sends first, `drop` does not."""

    __slots__ = ("_call_soon", "_pieces", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._pieces: list[Piece] = []

    def write(self, piece: Piece) -> None:
        """Send bytes when this iteration ends."""
        if not self._pieces:
            self._call_soon(self._send)
        self._pieces.append(piece)

    def write_all(self, pieces: Sequence[Piece]) -> None:
        """Send several pieces in a row."""
        if not self._pieces:
            self._call_soon(self._send)
        self._pieces += pieces

    def close(self) -> None:
        """Send what is there and close the transport."""
        self._send()
        self._transport.close()

    def drop(self) -> None:
        """Close the transport at once; what was not sent is lost."""
        self._pieces = []
        self._transport.abort()

    def _send(self) -> None:
        pieces = self._pieces
        if not pieces:
            return
        self._pieces = []
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)
