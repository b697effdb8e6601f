"""One short burst of load through one candidate, with what it cost and who else was at work."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.native.programs import Load, send_load, set_group_nice
from bench.overhead.candidates import Running
from bench.overhead.placing import PATH, bodies
from bench.overhead.process_cost import moment, rss_mib, tree

NOISY_CORES = 0.6
"""A burst is noisy if other work kept more than this of its two cores busy."""

REST_S = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kind of load."""

    name: str
    body: Path
    connections: int
    seconds: float
    is_stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The routers' core, the one that client and workers share, and the workers' process."""

    router_core: int
    core: int
    workers_pid: int
    patience_s: float
    group_nice: int = 0


def burst(running: Running, case: Case, place: Place, seed: int) -> dict[str, Any]:
    """Run a case once."""
    cores = [place.core, place.router_core] if running.pid else [place.core]
    waited_s = _wait_for_quiet(cores, place.patience_s)
    router = tree(running.pid) if running.pid else []
    path, body, report = "/v1/chat/completions", case.body, None
    if running.candidate.places:
        path = PATH
        body, report = bodies(running.candidate, case.body.parent)
    load = Load(
        port=running.port,
        connections=case.connections,
        path=path,
        body=body,
        report=report,
        seconds=case.seconds,
        seed=seed,
        header=running.candidate.header,
        turns_per_name=running.candidate.turns_per_name,
        group_nice=place.group_nice,
    )
    with _preferred([place.workers_pid, *router[:1]], place.group_nice):
        before = moment(router, [place.workers_pid], cores)
        counted = send_load(load, {place.core})
        router_s, others = moment(router, [place.workers_pid], cores).since(before)
    return {
        "requests_per_s": counted["requests_per_s"],
        "num_ended": counted["ended"],
        "num_errors": counted["errors"],
        "latency_us": counted["latency_us"],
        "events_per_s": counted["events"] / case.seconds,
        "lateness_us": counted["lateness_us"],
        "router_cpu_us": 1e6 * router_s / max(1, counted["all_events"] or counted["ended"]),
        "router_cores": router_s / (case.seconds + load.warm_up_s),
        "router_rss_mib": round(rss_mib(router), 1),
        "others_cores": round(others, 2),
        "load_average": os.getloadavg()[0],
        "waited_s": round(waited_s, 1),
        "is_noisy": others > NOISY_CORES,
    }


@contextmanager
def _preferred(pids: list[int], nice: int) -> Iterator[None]:
    """Scheduling groups weighed up for the time of a burst, then a rest for the others."""
    for pid in pids if nice else ():
        set_group_nice(pid, nice)
    try:
        yield
    finally:
        for pid in pids if nice else ():
            set_group_nice(pid, 0)
    if nice:
        time.sleep(REST_S)


def _wait_for_quiet(cores: list[int], patience_s: float) -> float:
    """Give others the machine until they need little of it, or patience ends."""
    begin = time.monotonic()
    while time.monotonic() - begin < patience_s:
        before = moment([], [], cores)
        time.sleep(0.3)
        _, others = moment([], [], cores).since(before)
        if others <= NOISY_CORES:
            break
    return time.monotonic() - begin
