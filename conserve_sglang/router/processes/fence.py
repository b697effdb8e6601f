"""Waits until all that fronts had said at some moment has been heard.

A client may have an answer from one front and come with its next request to another, whose words
reach the brain first. So before the brain says that something is unknown, it lets the others
finish: their links keep the order of what is said.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from conserve_sglang.router.processes import talk

TIMEOUT_S = 1.0


class Seat(Protocol):
    """A front."""

    number: int

    def say(self, message: talk.Flush) -> None:
        """Tell it something."""
        ...


@dataclass(slots=True)
class _Fence:
    awaited: set[int]
    then: Callable[[], None]
    give_up: Callable[[], None]
    timer: asyncio.TimerHandle


class Fences:
    """The moments that are waited for."""

    def __init__(self) -> None:
        self._num_raised = 0
        self._raised: dict[int, _Fence] = {}

    def __len__(self) -> int:
        return len(self._raised)

    def wait_for(
        self, seats: Iterable[Seat], then: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        """Go on when each of these has been heard, or is gone; at once if there are none. Give up
        if that takes `TIMEOUT_S`."""
        awaited = {seat.number: seat for seat in seats}
        if not awaited:
            then()
            return
        self._num_raised = number = self._num_raised + 1
        timer = asyncio.get_running_loop().call_later(TIMEOUT_S, self._late, number)
        self._raised[number] = _Fence(set(awaited), then, give_up, timer)
        for seat in awaited.values():
            seat.say(talk.Flush(number))

    def heard(self, seat_number: int, number: int) -> None:
        """A front has said all that it had to."""
        fence = self._raised.get(number)
        if fence is None:
            return  # given up
        fence.awaited.discard(seat_number)
        if not fence.awaited:
            del self._raised[number]
            fence.timer.cancel()
            fence.then()

    def gone(self, seat_number: int) -> None:
        """A front says nothing any more."""
        for number in tuple(self._raised):
            self.heard(seat_number, number)

    def _late(self, number: int) -> None:
        self._raised.pop(number).give_up()
