"""Our router in front of the shared cluster, as a process of its own."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.sglang.cluster import LOG_DIR, MODEL, MODEL_NAME, ROOT, Cluster, free_port

READY_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Router:
    """Where a running router is, and the cluster behind it."""

    url: str
    control_url: str
    cluster: Cluster

    def health(self) -> dict[str, Any]:
        """What it says about its workers; it says so with 503, too. The main port with keys is
        silent about them."""
        try:
            with urllib.request.urlopen(f"{self.control_url}/health", timeout=10) as answer:
                body: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                body = json.load(error)
        return body

    def wait_for(self, **states: str) -> None:
        """Wait until workers are in the states given, by the cluster's names."""
        deadline = time.monotonic() + READY_DEADLINE_S
        while True:
            workers = self.health()["workers"]
            if all(workers[worker_name(w)]["state"] == state for w, state in states.items()):
                return
            assert time.monotonic() < deadline, f"{workers} are not {states}"
            time.sleep(0.1)

    def wait_for_agent(self) -> None:
        """Wait until it has told energy: what was done before it began is on nobody's bill."""
        deadline = time.monotonic() + READY_DEADLINE_S
        while not any(v for k, v in self.loads().items() if k.startswith("conserve_agent_up")):
            assert time.monotonic() < deadline, "the agent tells nothing; see its log"
            time.sleep(0.2)

    def loads(self) -> dict[str, float]:
        """The router's own metrics, by name and labels."""
        with urllib.request.urlopen(f"{self.control_url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def worker_name(server: str) -> str:
    """The router's name for a server of the cluster."""
    return f"{server}-0"


@contextmanager
def running_router(
    cluster: Cluster,
    name: str,
    policy: dict[str, Any],
    decoders: tuple[str, ...] = ("d0", "d1"),
    ends_by: signal.Signals = signal.SIGTERM,
    energy: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Router]:
    """A router over the cluster's prefiller and `decoders`, until the block ends.

    With `energy`, that section of the tier map, an agent runs beside it.
    """
    port, control_port = free_port(), free_port()
    settings |= {"port": port, "control_port": control_port, "reserve_output_tokens": 64}
    tier_map = {
        "schema_version": 1,
        "model": {"path": str(MODEL), "served_name": MODEL_NAME},
        "tiers": [
            {
                "name": server,
                "role": "prefill" if server == "p0" else "decode",
                "gpu": "cpu",
                "base_port": cluster.servers[server].port,
                "bootstrap_base_port": cluster.servers[server].bootstrap_port,
            }
            for server in ("p0", *decoders)
        ],
        "policy": policy,
        "router": settings,
    }
    if energy is not None:
        tier_map["energy"] = energy
    LOG_DIR.mkdir(parents=True, exist_ok=True)
    path = LOG_DIR / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tier_map))
    with ExitStack() as stack:
        if energy is not None:
            logs = str(cluster.servers["p0"].phase_log.parent)
            agent = ("agent", "--host", "127.0.0.1", "--phase-dir", logs)
            stack.enter_context(_process(agent, path, LOG_DIR / f"{name}-agent.log", ends_by))
        log = LOG_DIR / f"{name}.log"
        process = stack.enter_context(_process(("router",), path, log, ends_by))
        router = Router(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control_port}", cluster)
        _wait_until_it_listens(router, process)
        router.wait_for(p0="up", **dict.fromkeys(decoders, "up"))
        if energy is not None:
            router.wait_for_agent()
        yield router


@contextmanager
def _process(
    what: tuple[str, ...], tier_map: Path, log_path: Path, ends_by: signal.Signals
) -> "Iterator[subprocess.Popen[bytes]]":
    module, *options = what
    command = [sys.executable, "-m", f"conserve_sglang.{module}", "--tier-map", str(tier_map)]
    command += options
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(ends_by)
        process.wait(20)


def _wait_until_it_listens(router: Router, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while True:
        assert process.poll() is None, "the router ended while starting; see its log"
        try:
            router.health()
        except OSError:
            assert time.monotonic() < deadline, "the router does not listen"
            time.sleep(0.1)
        else:
            return
