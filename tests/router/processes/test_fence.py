import asyncio
from functools import partial
from typing import Any

import pytest

from conserve_sglang.router.processes import fence as under_test
from conserve_sglang.router.processes import talk
from conserve_sglang.router.processes.fence import Fences


class Seat:
    def __init__(self, number: int) -> None:
        self.number = number
        self.said: list[Any] = []

    def say(self, message: Any) -> None:
        self.said.append(message)


def given_up() -> None:
    raise AssertionError("given up")


async def test_goes_on_when_every_front_was_heard() -> None:
    fences, seats = Fences(), [Seat(1), Seat(2)]
    went_on: list[str] = []
    for name in ("a", "b"):
        fences.wait_for(seats, partial(went_on.append, name), given_up)
    numbers = [message.number for message in seats[0].said]
    assert seats[1].said == [talk.Flush(number) for number in numbers]
    for number in numbers:
        fences.heard(1, number)
        fences.heard(1, number)
    assert not went_on
    fences.heard(2, numbers[1])
    assert went_on == ["b"]
    fences.heard(2, numbers[0])
    assert went_on == ["b", "a"]
    assert len(fences) == 0


async def test_front_that_is_gone_is_not_waited_for() -> None:
    fences = Fences()
    went_on: list[str] = []
    fences.wait_for([Seat(1)], partial(went_on.append, "a"), given_up)
    fences.gone(2)
    assert not went_on
    fences.gone(1)
    assert went_on == ["a"]


async def test_without_other_fronts_nothing_is_waited_for() -> None:
    fences = Fences()
    went_on: list[str] = []
    fences.wait_for([], partial(went_on.append, "a"), given_up)
    assert went_on == ["a"]
    assert len(fences) == 0


async def test_gives_up_on_a_front_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "TIMEOUT_S", 0.01)
    fences, seat, gave_up = Fences(), Seat(1), asyncio.Event()

    def goes_on() -> None:
        raise AssertionError("went on")

    fences.wait_for([seat], goes_on, gave_up.set)
    await asyncio.wait_for(gave_up.wait(), 5)
    fences.heard(1, seat.said[0].number)  # too late
    assert len(fences) == 0
