"""A deployment whose processes can be killed, frozen, slowed and started again."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bench.faults.talk import ANSWER_LIMIT_S
from bench.faults.worker import FILL_QUEUE, Pace
from conserve_sglang.launcher import keeper

ROOT = Path(__file__).resolve().parents[2]
_LIFELINE = os.pipe()
# A slowed process runs for the first and stands still for the second time, again and again.
SLOW_RUNS_S, SLOW_STANDS_S = 0.03, 0.27


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Site(ABC):
    """A router process, and worker processes that a subclass knows how to start."""

    prefillers: tuple[str, ...]
    decoders: tuple[str, ...]
    words = True  # whether answers are told apart by words, else by characters
    well_limit_s = 60.0
    answer_limit_s = ANSWER_LIMIT_S  # how long clients wait for an answer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.control_port = free_ports(2)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._slowing: dict[str, asyncio.Task[None]] = {}

    # what a subclass says

    @abstractmethod
    def tiers(self) -> list[dict[str, Any]]:
        """The tiers of the tier map, one worker each."""

    def model(self) -> dict[str, str]:
        """The model of the tier map."""
        return {"path": "models/tiny", "served_name": "tiny"}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The router's settings."""

    @abstractmethod
    def start_worker(self, name: str) -> None:
        """Start a worker on its port; the router says when it is there."""

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a worker and all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, number)

    # what is done to it

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.model()["served_name"]

    async def start(self) -> None:
        """Start the workers and the router; wait until all is well."""
        for name in (*self.prefillers, *self.decoders):
            self.start_worker(name)
        await self.start_router()

    async def start_router(self) -> None:
        """Start the router and wait until it has all its workers."""
        ports = {"port": self.port, "control_port": self.control_port}
        router = {**ports, "state": {"path": str(self.folder / "state.sqlite")}, **self.settings()}
        tier_map = {"schema_version": 1, "model": self.model(), "tiers": self.tiers()}
        path = self.folder / "map.yaml"
        path.write_text(yaml.safe_dump(tier_map | {"router": router}))
        argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(path)]
        self.spawn("router", argv)
        await self.until_well()

    def spawn(self, name: str, argv: list[str]) -> None:
        """Start a process in a group of its own, its output appended to its log.

        It ends with this process, however that ends.
        """
        lifeline, _ = _LIFELINE
        kept = [sys.executable, "-I", "-S", keeper.__file__, str(lifeline), "0", *argv]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                kept,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lifeline,),
            )

    def kill(self, name: str) -> None:
        """Kill a process as a crash does; its port is free when this returns."""
        self.signal(name, signal.SIGKILL)
        process = self.processes[name]
        process.wait()
        with suppress(ProcessLookupError):
            for _ in range(2000):  # the one that is kept may outlive its keeper by a moment
                os.killpg(process.pid, 0)
                time.sleep(0.005)

    async def fill_queue(self, name: str, *, is_full: bool) -> None:
        """Let a worker answer 503 to what it would queue, or take it again; fakes only."""
        raise NotImplementedError(f"{name} is no fake worker: its queue cannot be filled by word")

    async def forget_prompts(self) -> None:
        """Let the workers empty their caches of prompts; fakes have none."""
        await asyncio.sleep(0)

    def slow(self, name: str) -> None:
        """Let a worker run for a tenth of the time only."""
        self._slowing[name] = asyncio.get_running_loop().create_task(self._slow(name))

    async def _slow(self, name: str) -> None:
        while True:
            self.signal(name, signal.SIGSTOP)
            await asyncio.sleep(SLOW_STANDS_S)
            self.signal(name, signal.SIGCONT)
            await asyncio.sleep(SLOW_RUNS_S)

    async def no_longer_slow(self, name: str) -> None:
        """Let it run as ever."""
        task = self._slowing.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.signal(name, signal.SIGCONT)

    async def until_well(self) -> None:
        """Wait until every worker takes turns and none has a turn."""
        loop = asyncio.get_running_loop()
        states: list[Any] = []
        deadline = loop.time() + self.well_limit_s
        while True:
            with suppress(OSError):
                workers = (await self.control("GET", "/admin/workers"))[1]["workers"]
                states = [(w["state"], w["breaker"], w["running_turns"]) for w in workers]
                if all(state == ("up", "closed", 0) for state in states):
                    return
            if loop.time() > deadline:
                raise SystemExit(f"not well in time: {states}; see the logs in {self.folder}")
            await asyncio.sleep(0.05)

    async def control(self, method: str, path: str) -> tuple[int, Any]:
        """Ask the router's control port; status and decoded body."""
        return await asyncio.to_thread(self._control, method, path)

    def _control(self, method: str, path: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.control_port}{path}"
        request = urllib.request.Request(url, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    async def decoder_of(self, conversation: str) -> str:
        """The tier whose worker a conversation is pinned to."""
        url = f"http://127.0.0.1:{self.port}/v1/conversations/{conversation}"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(json.load(answer)["decoder"])

        return (await asyncio.to_thread(read)).removesuffix("-0")

    async def decoder_loads(self) -> list[dict[str, Any]]:
        """What the router's ledger says of each decoder."""
        _, told = await self.control("GET", "/admin/workers")
        return [worker for worker in told["workers"] if worker["tier"] in self.decoders]

    async def num_queued(self) -> float:
        """How many turns wait for a phase 1."""
        return (await self.counts())['conserve_router_queued_turns{queue="phase_one"}']

    async def counts(self) -> dict[str, float]:
        """The router's own counters, by name and labels."""
        url = f"http://127.0.0.1:{self.control_port}/metrics"

        def read() -> list[str]:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return list(answer.read().decode().splitlines())

        lines = await asyncio.to_thread(read)
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self) -> None:
        """Kill what is left."""
        for task in self._slowing.values():
            task.cancel()
        for name, process in self.processes.items():
            self.signal(name, signal.SIGKILL)
            process.wait()


class FastSite(Site):
    """Fake workers at a quick pace, and a router that is quick to suspect."""

    prefillers = ("p0", "p1")
    decoders = ("d0", "d1", "d2")

    def __init__(self, folder: Path, pace: Pace, *, capacity: int) -> None:
        super().__init__(folder)
        self.pace = pace
        names = (*self.prefillers, *self.decoders)
        self._capacity = capacity
        ports = free_ports(2 * len(names))
        self._ports = {name: ports[2 * n : 2 * n + 2] for n, name in enumerate(names)}

    def tiers(self) -> list[dict[str, Any]]:
        prefill = [
            {"name": name, "role": "prefill", "gpu": "cpu", "base_port": self._ports[name][0]}
            | {"bootstrap_base_port": self._ports[name][1]}
            for name in self.prefillers
        ]
        return prefill + [
            {"name": name, "role": "decode", "gpu": "cpu", "base_port": self._ports[name][0]}
            for name in self.decoders
        ]

    def settings(self) -> dict[str, Any]:
        breaker = {"cooldown_s": 0.3, "max_cooldown_s": 1.0, "trial_turns": 1}
        health = {"probe_interval_s": 0.1, "stall_s": 0.5, "stall_probe_timeout_s": 0.7}
        return {
            "health": {**health, "probe_timeout_s": 2.0, "breaker": breaker},
            "reserve_output_tokens": 16,
            "reclaim_idle_s": 0.3,
            "queue_timeout_s": 20.0,
        }

    def worker_ports(self) -> set[int]:
        """Where the workers answer requests."""
        return {port for port, _ in self._ports.values()}

    async def fill_queue(self, name: str, *, is_full: bool) -> None:
        url = f"http://127.0.0.1:{self._ports[name][0]}{FILL_QUEUE}"
        body = json.dumps({"is_full": is_full}).encode()
        answer = await asyncio.to_thread(urllib.request.urlopen, url, body, 10)
        answer.close()

    def start_worker(self, name: str) -> None:
        port, meet_port = self._ports[name]
        mode = "prefill" if name in self.prefillers else "decode"
        pace = self.pace
        argv = [sys.executable, "-m", "bench.faults.worker", "--mode", mode]
        argv += ["--port", f"{port}", "--meet-port", f"{meet_port}"]
        argv += ["--capacity", f"{self._capacity}", "--num-words", f"{pace.num_words}"]
        argv += ["--prefill-s", f"{pace.prefill_s}", "--transfer-s", f"{pace.transfer_s}"]
        argv += ["--local-prefill-s", f"{pace.local_prefill_s}", "--token-s", f"{pace.token_s}"]
        self.spawn(name, argv)
