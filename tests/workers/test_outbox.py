import asyncio
import gc
import weakref
from typing import Any

from conserve_sglang.workers.outbox import Outbox


class Wire:
    """A transport that notes what it is given, or fails."""

    def __init__(self, notes: list[Any], *, is_broken: bool = False) -> None:
        self.notes = notes
        self.is_broken = is_broken

    def write(self, data: bytes) -> None:
        if self.is_broken:
            raise RuntimeError("the handler is closed")
        self.notes.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.notes.append(tuple(pieces))

    def close(self) -> None:
        self.notes.append("closed")

    def abort(self) -> None:
        self.notes.append("aborted")


async def test_writes_of_an_iteration_go_together_at_its_end() -> None:
    notes: list[Any] = []
    first, second = Outbox(Wire(notes)), Outbox(Wire(notes))
    first.write(b"1")
    second.write_all([b"2", b"3"])
    first.write(b"4")
    assert notes == []
    await asyncio.sleep(0)
    assert notes == [(b"1", b"4"), (b"2", b"3")]
    second.write(b"5")
    await asyncio.sleep(0)
    assert notes[2:] == [b"5"]


async def test_close_sends_first_and_drop_does_not() -> None:
    notes: list[Any] = []
    closed, dropped = Outbox(Wire(notes)), Outbox(Wire(notes))
    closed.write(b"kept")
    dropped.write(b"lost")
    dropped.drop()
    closed.close()
    await asyncio.sleep(0)
    assert notes == ["aborted", b"kept", "closed"]


async def test_nothing_is_written_on_a_transport_that_was_lost() -> None:
    notes: list[Any] = []
    lost = Outbox(Wire(notes))
    lost.write(b"1")
    lost.forget()
    await asyncio.sleep(0)
    assert notes == []


async def test_write_that_fails_takes_no_other_with_it() -> None:
    notes: list[Any] = []
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    broken, sound = Outbox(Wire(notes, is_broken=True)), Outbox(Wire(notes))
    broken.write(b"secret")
    sound.write(b"1")
    await asyncio.sleep(0)
    assert notes == [b"1"]
    assert [str(each["exception"]) for each in told] == ["the handler is closed"]
    assert "secret" not in str(told)


async def test_writes_during_the_sending_go_with_the_next_iteration() -> None:
    notes: list[Any] = []

    class Echo(Wire):
        def write(self, data: bytes) -> None:
            super().write(data)
            if len(notes) == 1:
                other.write(b"2")

    other = Outbox(Wire(notes))
    Outbox(Echo(notes)).write(b"1")
    await asyncio.sleep(0)
    assert notes == [b"1"]
    await asyncio.sleep(0)
    assert notes == [b"1", b"2"]


def test_loop_that_is_over_is_not_kept() -> None:
    async def write() -> None:
        Outbox(Wire([])).write(b"1")
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(write())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
