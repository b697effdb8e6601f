"""How a process ends what it has going on beside its requests."""

import asyncio
from typing import Any


async def ended(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it is over; None is no task.

    What it failed with before that is not raised, so that the rest of its owner can be ended too:
    asyncio logs it.
    """
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
