"""Writes of one iteration of the event loop, handed to the sockets together at its end.

A write at once wakes the reader at the other end, which finds one message, answers it and falls
asleep again, so that each message pays for a wake-up. Gathered writes come back to back.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

Piece = bytes | memoryview


class _Round:
    """The outboxes of one event loop that hold something; one callback empties them all."""

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due: list[Outbox] = []

    def begin(self) -> None:
        """Empty the outboxes when this iteration ends."""
        asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        due = self.due[:]
        self.due.clear()
        for outbox in due:
            try:
                outbox.send()
            except Exception as error:  # of one connection; the others' writes are due as well
                told = {"message": "a write failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)


_rounds: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Round]" = WeakKeyDictionary()


def _round_of_this_loop() -> _Round:
    loop = asyncio.get_running_loop()
    found = _rounds.get(loop)
    if found is None:
        found = _rounds[loop] = _Round()
    return found


class Outbox:
    """What is to be written on one transport. `close` sends first, `drop` does not."""

    __slots__ = ("_due", "_pieces", "_round", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._round = _round_of_this_loop()
        self._due = self._round.due
        self._pieces: list[Piece] = []

    def write(self, piece: Piece) -> None:
        """Send bytes when this iteration ends."""
        pieces = self._pieces
        if not pieces:
            due = self._due
            if not due:
                self._round.begin()
            due.append(self)
        pieces.append(piece)

    def write_all(self, pieces: Sequence[Piece]) -> None:
        """Send several pieces in a row."""
        if not self._pieces:
            if not self._due:
                self._round.begin()
            self._due.append(self)
        self._pieces += pieces

    def close(self) -> None:
        """Send what is there and close the transport."""
        self.send()
        self._transport.close()

    def drop(self) -> None:
        """Close the transport at once; what was not sent is lost."""
        self._pieces = []
        self._transport.abort()

    def forget(self) -> None:
        """The transport is closed: what was not sent is lost."""
        self._pieces = []

    def send(self) -> None:
        """Hand what is there to the transport."""
        pieces = self._pieces
        if len(pieces) == 1:
            piece = pieces.pop()
            self._transport.write(piece)
        elif pieces:
            self._pieces = []
            self._transport.writelines(pieces)
