"""Tasks are over when their owner goes on, however they end."""

import asyncio

import pytest

from conserve_sglang.serving.ending import ended


async def test_what_a_task_does_last_is_done_before_its_owner_goes_on() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("last")

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    await ended(task)
    assert done == ["last"]
    assert task.cancelled()


async def test_a_failure_is_left_with_the_task() -> None:
    async def work() -> None:
        raise OSError("gone")

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    await ended(task)
    with pytest.raises(OSError, match="gone"):
        task.result()


async def test_no_task_is_over_already() -> None:
    await ended(None)
