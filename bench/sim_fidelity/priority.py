"""A busy machine: weighing our processes up while they are measured."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def weighed_up(nice: int) -> Iterator[None]:
    """This process and all it has started at this niceness, until the block ends; then 0 again.

    Below 0 needs root, and slows all other work meanwhile.
    """
    _renice(nice)
    try:
        yield
    finally:
        _renice(0)


def _renice(nice: int) -> None:
    for pid in family_of(os.getpid()):
        with suppress(ProcessLookupError):
            for thread in _threads(pid):
                os.setpriority(os.PRIO_PROCESS, thread, nice)


def family_of(pid: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                stat = (folder / "stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def _threads(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return []
