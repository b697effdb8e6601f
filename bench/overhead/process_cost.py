"""CPU time and memory of a process tree, and what the rest of the machine did meanwhile."""

import os
import resource
import time
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
    machine_s: float

    def since(self, before: "Moment") -> tuple[float, float]:
        """(CPU seconds of the router, cores that others kept busy)."""
        others = (self.machine_s - before.machine_s) - (self.ours_s - before.ours_s)
        return self.router_s - before.router_s, max(0.0, others) / (self.at_s - before.at_s)


def moment(router: list[int], others_of_ours: list[int]) -> Moment:
    """Read the clocks; `ours` is the router, the workers, this process and what it waited for."""
    router_s = cpu_s(router)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited_s = children.ru_utime + children.ru_stime
    return Moment(
        at_s=time.monotonic(),
        router_s=router_s,
        ours_s=router_s + cpu_s([*others_of_ours, os.getpid()]) + waited_s,
        machine_s=_machine_busy_s(),
    )


def _machine_busy_s() -> float:
    fields = _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


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
