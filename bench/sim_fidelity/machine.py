"""The machine while it is measured: what others use of it, and weighing our processes up."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MOST_OTHERS_CORES = 0.15
"""Of others' work, in cores over a whole run: with more, what was measured is no result."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Load:
    """How busy the machine was in one part of a run, our own processes left out where it says so.

    `others_cores`: processor seconds a second of all but this process and those it has started,
    the hypervisor's (steal) among them. `load_average`: of the last minute, ours in it.
    """

    name: str
    seconds: float = 0.0
    others_cores: float = 0.0
    load_average: float = 0.0


@dataclass(slots=True)
class LoadWatch:
    """Notes the load of each part of a run."""

    parts: list[Load] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[Load]:
        """Watch from here to the end of the block."""
        found, began_s = Load(name), time.monotonic()
        all_s, own_s = busy_s(), family_s(os.getpid())
        yield found
        found.seconds = time.monotonic() - began_s
        others_s = (busy_s() - all_s) - (family_s(os.getpid()) - own_s)
        found.others_cores = max(0.0, others_s / max(1e-9, found.seconds))
        found.load_average = os.getloadavg()[0]
        self.parts.append(found)

    @property
    def others_cores(self) -> float:
        """Others' work over all parts."""
        seconds = sum(part.seconds for part in self.parts)
        return sum(p.others_cores * p.seconds for p in self.parts) / seconds if seconds else 0.0

    def why_no_result(self) -> str | None:
        """Why what was measured is no result; None where nothing speaks against it."""
        if not self.parts:
            return "nobody looked at what else this machine did"
        if self.others_cores <= MOST_OTHERS_CORES:
            return None
        worst = max(self.parts, key=lambda part: part.others_cores)
        return (
            f"others used {self.others_cores:.2f} of {os.cpu_count()} cores meanwhile (at most"
            f" {MOST_OTHERS_CORES:g} is allowed), {worst.others_cores:.2f} in the worst part,"
            f" {worst.name}; load average {worst.load_average:.1f}"
        )


def busy_s() -> float:
    """Processor seconds since the machine started, of all its cores, waiting for disks left out."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(t) for t in first[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def family_s(pid: int) -> float:
    """Processor seconds of a process and all that come from it, ended children of these too."""
    total = 0
    for one in family_of(pid):
        with suppress(OSError):
            parts = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in parts[11:15])
    return total / _TICKS_PER_S


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
