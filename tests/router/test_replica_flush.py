import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from conserve_sglang.router import replica_flush
from conserve_sglang.router.replica_flush import Flushes


class Site:
    """A line that counts the rounds, and fronts that may be slow."""

    def __init__(self, channels: list[bytes] | None) -> None:
        self.channels = channels
        self.rounds: list[int] = []
        self.num_wakes = 0
        self.unsettled: list[Callable[[], None]] = []
        self.flushes = Flushes(cast(Any, self), cast(Any, self))

    async def answer(self, name: str, number: int) -> list[bytes] | None:
        assert name == "FLUSH"
        self.rounds.append(number)
        await asyncio.sleep(0)
        return self.channels

    def wake(self) -> None:
        self.num_wakes += 1

    def settle(self, then: Callable[[], None]) -> None:
        self.unsettled.append(then)


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_all_that_listen_are_waited_for() -> None:
    site = Site([b"ns:to:one", b"ns:to:two"])
    waiting = asyncio.ensure_future(site.flushes.all_written())
    await turns()
    site.flushes.flushed("1", "one")
    await turns()
    assert not waiting.done()
    site.flushes.flushed("0", "two")  # of another round
    await turns()
    assert not waiting.done()
    site.flushes.flushed("1", "two")
    await asyncio.wait_for(waiting, 0.1)


async def test_who_comes_during_a_round_shares_the_next() -> None:
    site = Site([b"ns:to:one"])
    waiting = [asyncio.ensure_future(site.flushes.all_written())]
    await turns()
    waiting += [asyncio.ensure_future(site.flushes.all_written()) for _ in range(5)]
    await turns()
    assert site.rounds == [1]
    site.flushes.flushed("1", "one")
    await turns(20)
    assert [each.done() for each in waiting] == [True] + [False] * 5
    assert site.rounds == [1, 2]
    site.flushes.flushed("2", "one")
    await asyncio.wait_for(asyncio.gather(*waiting), 0.1)
    assert site.rounds == [1, 2]


async def test_replica_that_says_nothing_is_waited_for_no_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_flush, "TIMEOUT_S", 0.05)
    site = Site([b"ns:to:one"])
    for _ in range(2):
        await asyncio.wait_for(site.flushes.all_written(), 0.5)
    assert site.rounds == [1, 2]


async def test_nobody_is_waited_for_without_redis() -> None:
    await asyncio.wait_for(Site(None).flushes.all_written(), 0.1)


async def test_asker_is_told_once_this_routers_own_processes_are_heard() -> None:
    site = Site([])
    site.flushes.flush("3", "two")
    assert site.flushes.take_askers() == []
    site.unsettled.pop()()
    assert site.num_wakes == 1
    assert site.flushes.take_askers() == [("two", "3")]
    assert site.flushes.take_askers() == []
