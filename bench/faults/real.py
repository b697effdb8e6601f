"""The same rows on real SGLang servers on this machine's CPU: one prefiller, two decoders.

A server takes a minute to start, so a killed prefiller is started again at once while its turns
wait; a killed decoder only when the conversations are over.
"""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.faults.rows import (
    ALL,
    ALWAYS,
    DRAINED,
    FROZEN,
    FULL,
    KILLED,
    KILLED_AND_STARTED,
    ROUTER,
    SLOW,
    Fault,
    Row,
    When,
    decoder_moments,
)
from bench.faults.site import Site
from bench.faults.talk import Script
from tests.sglang.cluster import DECODE, MODEL, MODEL_NAME, PREFILL, Cluster

# Tokens are bytes here: prompts long enough that a fault finds a prefill under way.
SCRIPT = Script(num_conversations=2, num_turns=3, first_chars=1500, later_chars=1500, max_tokens=24)
# One conversation whose prefill takes the CPU seconds; each chunk is sent when it is done.
LONG_SCRIPT = Script(
    num_conversations=1, num_turns=2, first_chars=8000, later_chars=100, max_tokens=24
)
SOON_S, LOCAL_PREFILL_S = 0.05, 0.1
KV_LIMIT_S = 60.0
# Eight conversations that want to be where there is room for two each.
CROWD_SCRIPT = Script(
    num_conversations=8, num_turns=2, first_chars=1500, later_chars=200, max_tokens=24
)
SMALL_POOL_TOKENS = 4096
SMALL_DECODERS = ("small0", "small1")


class RealSite(Site):
    """SGLang servers, each a process tree in a group of its own.

    What `cluster` has of them is used and left running; `capacity` is the KV pool, in tokens, of
    decoders that are started here.
    """

    prefillers = ("p0",)
    words = False
    well_limit_s = 300.0
    answer_limit_s = 320.0  # turns wait in the router while their server starts again

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        decoders: tuple[str, ...] = ("d0", "d1"),
        capacity: int | None = None,
    ) -> None:
        super().__init__(folder)
        self.decoders = decoders
        self._cluster = cluster
        self._flags = () if capacity is None else ("--max-total-tokens", str(capacity))
        self._started: list[str] = []

    def tiers(self) -> list[dict[str, Any]]:
        servers = self._cluster.servers
        return [
            {
                "name": name,
                "role": "prefill" if name in self.prefillers else "decode",
                "gpu": "cpu",
                "base_port": servers[name].port,
                "bootstrap_base_port": servers[name].bootstrap_port,
            }
            for name in (*self.prefillers, *self.decoders)
        ]

    def model(self) -> dict[str, str]:
        return {"path": str(MODEL), "served_name": MODEL_NAME}

    def settings(self) -> dict[str, Any]:
        # Other servers share the cores, and one of them that is only slow must not be given up.
        health = {"stall_s": 4.0, "stall_probe_timeout_s": 10.0}
        health |= {"hang_s": 10.0, "hang_probe_timeout_s": 12.0}
        settings = {"health": health, "reserve_output_tokens": 64, "queue_timeout_s": 300.0}
        return settings | ({"reclaim_idle_s": 1.0} if self._flags else {})

    async def start(self) -> None:
        await asyncio.to_thread(self._start_servers)
        await self.start_router()

    def _start_servers(self) -> None:
        for name in (*self.prefillers, *self.decoders):
            if name not in self._cluster.servers:
                is_prefiller = name in self.prefillers
                role, flags = (PREFILL, ()) if is_prefiller else (DECODE, self._flags)
                self._cluster.add(name, role, flags=flags, is_awaited=False)
                self._started.append(name)
        self._cluster.wait_ready(*self.prefillers, *self._started)

    def start_worker(self, name: str) -> None:
        self._cluster.servers[name].start()

    def signal(self, name: str, number: int) -> None:
        if name in self._cluster.servers:
            self._cluster.servers[name].signal(number)
        else:
            super().signal(name, number)

    def signal_scheduler(self, name: str, number: int) -> None:
        """Send a signal to the scheduler alone; the HTTP server beside it goes on answering."""
        process = self._cluster.servers[name].process
        assert process is not None, f"{name} does not run"
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                pid = int(entry.parent.name)
                if os.getpgid(pid) == process.pid and b"scheduler" in entry.read_bytes():
                    os.kill(pid, number)

    async def forget_prompts(self) -> None:
        """Empty the caches: a prompt that was prefilled for another row takes no time again."""
        for name in (*self.prefillers, *self.decoders):
            await asyncio.to_thread(self._cluster.servers[name].flush)

    def num_kv_pieces(self) -> int:
        """How many pieces of KV the prefillers have sent so far: each but the last is of a chunk
        of a prompt whose prefill goes on."""
        logs = [self._cluster.servers[name].transfer_log for name in self.prefillers]
        return sum(len(log.read_bytes().splitlines()) for log in logs if log.exists())

    def kill(self, name: str) -> None:
        if name in self._cluster.servers:
            self._cluster.kill(name)
        else:
            super().kill(name)

    def stop(self) -> None:
        super().stop()
        for name in self._started:
            self._cluster.remove(name)
        self._started.clear()


async def _freeze_scheduler(site: Site, victim: str) -> None:
    assert isinstance(site, RealSite)
    site.signal_scheduler(victim, signal.SIGSTOP)


async def _thaw_scheduler(site: Site, victim: str) -> None:
    assert isinstance(site, RealSite)
    site.signal_scheduler(victim, signal.SIGCONT)


async def _kv_moves(site: Site) -> None:
    """The first piece of a new conversation's KV is on its way."""
    assert isinstance(site, RealSite)
    before, deadline = site.num_kv_pieces(), time.monotonic() + KV_LIMIT_S
    while site.num_kv_pieces() == before:
        if time.monotonic() > deadline:
            raise SystemExit(f"no KV was sent in {KV_LIMIT_S:g} s")
        await asyncio.sleep(0.005)


HUNG = Fault(name="scheduler frozen", strike=_freeze_scheduler, heal=_thaw_scheduler)


def small_site(folder: Path, cluster: Cluster) -> RealSite:
    """A site whose decoders are full with a few conversations, behind the cluster's prefiller."""
    folder = folder / "small"
    folder.mkdir()
    return RealSite(folder, cluster, SMALL_DECODERS, SMALL_POOL_TOKENS)


def real_rows() -> list[Row]:
    """All rows; those with a `capacity` are of `small_site`.

    A decoder's own full queue (503) is a row of the fakes: no server fills it by word.
    """
    moments = decoder_moments(LOCAL_PREFILL_S)
    rows = [Row(fault=fault, when=when) for fault in (FROZEN, SLOW, DRAINED) for when in moments]
    rows += [Row(fault=HUNG, when=when) for when in moments[:2]]
    rows += [Row(fault=ROUTER, when=when, victim="router") for when in moments]
    rows += [Row(fault=KILLED, when=when) for when in moments]
    first = (
        When(name="before the transfer", turn=1, moment="asked", after_s=SOON_S),
        When(name="during the transfer", turn=1, moment="asked", until=_kv_moves),
        When(name="after the transfer", turn=1, moment="tokens"),
    )
    rows.append(Row(fault=KILLED, when=first[1], script=LONG_SCRIPT))
    for when in first:
        rows.append(Row(fault=KILLED_AND_STARTED, when=when, victim="p0", script=LONG_SCRIPT))
    small = SMALL_POOL_TOKENS
    rows.append(Row(fault=FULL, when=ALWAYS, victim=ALL, script=CROWD_SCRIPT, capacity=small))
    return rows
