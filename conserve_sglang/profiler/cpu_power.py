"""A model meter of the CPU: cores times what a server's core draws idle and busy, by literature.

For machines without RAPL, as virtual ones are. Everything it says is modelled.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading

IDLE_W_PER_THREAD = 0.45
BUSY_W_PER_THREAD = 1.87
SOURCE = (
    "modelled: CPU time x 0.45 W idle to 1.87 W busy per hardware thread, Cloud Carbon Footprint's"
    " SPECpower averages for AMD EPYC of the 3rd generation; the processor alone, no memory"
)
DEVICE_ID = "cpu-model"
_LOOK_S = 2.0  # how often new child processes are looked for
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CpuModelMeter:
    """The processes of `roots` and all that descend from them, on this machine's cores."""

    def __init__(
        self,
        roots: Iterable[int],
        *,
        num_threads: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = tuple(roots)
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._clock = clock
        self._began_s = clock()
        self._seen: dict[int, float] = {}
        self._pids: tuple[int, ...] = ()
        self._look_again_at_s = self._began_s
        self._note_cpu_time()
        self._begin_busy_s = sum(self._seen.values())

    def devices(self) -> tuple[Device, ...]:
        """One: the processor."""
        return (Device(device_id=DEVICE_ID, kind=Kind.CPU_PACKAGE, name="CPU, modelled"),)

    def read(self) -> dict[str, Reading]:
        """The energy since the meter began. Raises `MeterError` when no process is left."""
        now = self._clock()
        alive = self._note_cpu_time()
        if not alive:
            raise MeterError("the processes whose CPU time is watched are gone")
        busy_s = sum(self._seen.values()) - self._begin_busy_s
        idle_w = IDLE_W_PER_THREAD * self._num_threads
        joules = idle_w * (now - self._began_s) + (BUSY_W_PER_THREAD - IDLE_W_PER_THREAD) * busy_s
        reading = Reading(
            device_id=DEVICE_ID,
            at_s=now,
            joules=joules,
            watts=None,
            origin=Origin.MODELLED,
            source=SOURCE,
        )
        return {DEVICE_ID: reading}

    def close(self) -> None:
        """Nothing is held."""

    def _note_cpu_time(self) -> bool:
        """CPU seconds of each process seen so far; one that is gone keeps its last."""
        now = self._clock()
        if now >= self._look_again_at_s:
            self._pids = descendants(self._roots)
            self._look_again_at_s = now + _LOOK_S
        for pid in self._pids:
            seconds = cpu_seconds(pid)
            if seconds is not None:
                self._seen[pid] = seconds
        return bool(self._pids)


def descendants(roots: Iterable[int]) -> tuple[int, ...]:
    """Processes and all below them, as far as they live."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root for root in roots if _stat(root) is not None]
    new = found
    while new:
        new = [child for pid in new for child in children.get(pid, ())]
        found = [*found, *new]
    return tuple(found)


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process; None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _stat(pid: int) -> list[str] | None:
    """What follows the name in /proc/PID/stat: state, parent, ...; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
