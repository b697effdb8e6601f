"""CPU time and memory of a process tree, and what the rest of the machine did meanwhile."""

import os
import resource
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        for task in _tasks(current):
            todo += [int(child) for child in _read(task / "children").split()]
    return found


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that all threads of these processes have used."""
    stats = [_read(task / "schedstat").split() for pid in pids for task in _tasks(pid)]
    return sum(int(stat[0]) for stat in stats if stat) / 1e9


def rss_mib(pids: list[int]) -> float:
    """Resident memory of these processes together."""
    pages = [_read(Path(f"/proc/{pid}/statm")).split() for pid in pids]
    return sum(int(page[1]) for page in pages if page) * resource.getpagesize() / 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Readings of one moment; differences of two are what happened between."""

    at_s: float
    router_s: float
    ours_s: float
    cores_s: float

    def since(self, before: "Moment") -> tuple[float, float]:
        """(CPU seconds of the router, how many of the cores looked at others kept busy)."""
        others = (self.cores_s - before.cores_s) - (self.ours_s - before.ours_s)
        return self.router_s - before.router_s, max(0.0, others) / (self.at_s - before.at_s)


def moment(router: list[int], workers: list[int], cores: Collection[int]) -> Moment:
    """Read the clocks; ours are the router, the workers, this process and what it waited for."""
    router_s = cpu_s(router)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited_s = children.ru_utime + children.ru_stime
    return Moment(
        at_s=time.monotonic(),
        router_s=router_s,
        ours_s=router_s + cpu_s([*workers, os.getpid()]) + waited_s,
        cores_s=sum(_busy_s(core) for core in cores),
    )


def _busy_s(core: int) -> float:
    for line in _read(Path("/proc/stat")).splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
            return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
    return 0.0


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
