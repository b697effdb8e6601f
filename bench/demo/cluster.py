"""The processes of the demo: the launcher with its cluster, a stock server, a stock-PD router."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.demo.energy import PROFILE, SETTINGS
from conserve_sglang.launcher.ports import is_free, listener
from conserve_sglang.launcher.process import last_lines

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out"
COMMAND = Path(sys.executable).parent / "conserve-sglang"
TIER_MAP = ROOT / "tier_maps" / "cpu_local.yaml"
START_LIMIT_S = 240.0
TAIL_LINES = 20
STOCK_PORT = 30300


class Cluster:
    """Addresses of what runs, and the count of KV transfers at their sender."""

    def __init__(self, tier_map: dict[str, Any], transfers: Path) -> None:
        self.model: str = tier_map["model"]["served_name"]
        self.router = local_url(tier_map["router"]["port"])
        self.stock_pd_router = local_url(tier_map["router"]["port"] + 10)
        self.stock = local_url(STOCK_PORT)
        self.workers = [
            local_url(tier["base_port"] + number)
            for tier in tier_map["tiers"]
            for number in range(tier["count"])
        ]
        self._transfers = transfers

    def num_transfers(self) -> int:
        """KV transfers so far: distinct rooms the prefill server has sent KV for."""
        if not self._transfers.exists():
            return 0
        lines = self._transfers.read_text().splitlines()
        return len({json.loads(line)["room"] for line in lines})

    def forget_everything(self) -> None:
        """Empty every KV cache, so that no run profits from the one before."""
        for url in [*self.workers, self.stock]:
            _post(f"{url}/flush_cache")


@dataclass(frozen=True, slots=True)
class Child:
    """A process of the demo that runs until the demo ends."""

    name: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def refuse_if_ended(self) -> None:
        """End the demo, with the end of the log, if this process has ended."""
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(f"  | {line}" for line in last_lines(self.log, TAIL_LINES))
            raise SystemExit(
                f"{self.name} ended with exit code {code}. The end of {self.log}:\n{tail}"
            )


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start everything, wait until it answers, and take it down again."""
    tier_map = yaml.safe_load(TIER_MAP.read_text())
    OUT.mkdir(exist_ok=True)
    with_energy = _with_energy(tier_map)
    transfers = OUT / "demo_transfers.jsonl"
    cluster = Cluster(tier_map, transfers)
    _refuse_taken_ports([cluster.router, cluster.stock_pd_router, cluster.stock])
    transfers.unlink(missing_ok=True)
    env = {"CONSERVE_COUNT_TRANSFERS": "1", "CONSERVE_TRANSFER_LOG": str(transfers)}
    with ExitStack() as stack:
        children = [
            stack.enter_context(running_child(name, [str(COMMAND), *args], env))
            for name, args in (
                ("launch", _launch(_write("demo_conserve.yaml", with_energy))),
                ("stock", _stock_launch(tier_map)),
                (
                    "stock_pd_router",
                    ["route", "--no-state", "--tier-map", str(_stock_pd_map(with_energy))],
                ),
            )
        ]
        routers = [cluster.router, cluster.stock_pd_router]
        wait_until_up([*routers, cluster.stock], len(cluster.workers), children)
        yield cluster


def _with_energy(tier_map: dict[str, Any]) -> dict[str, Any]:
    """The tier map with its energy read: one agent for both routers."""
    tiers = [{**tier, "profile": PROFILE} for tier in tier_map["tiers"]]
    placed = _variant(tier_map, tier_map["policy"]["name"], port_offset=0)
    return placed | {"policy": tier_map["policy"], "tiers": tiers, "energy": SETTINGS}


def _launch(path: Path) -> list[str]:
    """The cluster; a demo begins with no conversation, whatever an earlier one left."""
    logs = str(OUT / "logs")
    return ["launch", "--no-state", "--tier-map", str(path), "--log-dir", logs]


def _stock_launch(tier_map: dict[str, Any]) -> list[str]:
    """One server without disaggregation, with the same model and flags: the reference."""
    flags = tier_map["tiers"][0]["sglang_flags"]
    tier = {
        "name": "stock",
        "role": "mixed",
        "gpu": "cpu",
        "count": 1,
        "base_port": STOCK_PORT,
        "sglang_flags": flags,
    }
    stock = _variant(tier_map, "colocated", port_offset=20) | {"tiers": [tier]}
    path = _write("demo_stock.yaml", stock)
    logs = str(OUT / "logs" / "stock")
    return ["launch", "--no-router", "--tier-map", str(path), "--log-dir", logs]


def _stock_pd_map(tier_map: dict[str, Any]) -> Path:
    """A second router over the same workers, which sends every turn through both phases."""
    return _write("demo_stock_pd.yaml", _variant(tier_map, "stock-pd", port_offset=10))


def _variant(tier_map: dict[str, Any], policy: str, port_offset: int) -> dict[str, Any]:
    router = tier_map["router"]
    model = tier_map["model"]
    return tier_map | {
        "policy": {"name": policy},
        "model": model | {"path": str((TIER_MAP.parent / model["path"]).resolve())},
        "router": router
        | {
            "port": router["port"] + port_offset,
            "control_port": router["control_port"] + port_offset,
        },
    }


def _write(name: str, tier_map: dict[str, Any]) -> Path:
    path = OUT / name
    path.write_text(yaml.safe_dump(tier_map, sort_keys=False))
    return path


def _refuse_taken_ports(urls: list[str]) -> None:
    """Whatever answers there would be taken for ours; the launcher looks at the other ports."""
    for url in urls:
        port = int(url.rpartition(":")[2])
        if not is_free("127.0.0.1", port):
            raise SystemExit(
                f"port {port}, which the demo needs, is in use by {listener(port) or 'another'};"
                " stop that first. Is another demo running?"
            )


@contextmanager
def running_child(name: str, command: list[str], env: dict[str, str]) -> Iterator[Child]:
    """A process with its output in out/demo_NAME.log, until the block ends."""
    path = OUT / f"demo_{name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | env, cwd=ROOT
        )
        try:
            yield Child(name, path, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_up(urls: Iterable[str], num_workers: int, children: Sequence[Child]) -> None:
    """Wait for routers to have all their workers, and for servers of SGLang to answer."""
    deadline = time.monotonic() + START_LIMIT_S
    waiting = list(urls)
    while waiting:
        for child in children:
            child.refuse_if_ended()
        waiting = [url for url in waiting if not _is_up(url, num_workers)]
        if waiting and time.monotonic() > deadline:
            raise SystemExit(f"not up within {START_LIMIT_S:.0f} s: {waiting}; see out/demo_*.log")
        time.sleep(0.3)


def _is_up(url: str, num_workers: int) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            body = response.read()
    except OSError:
        return False
    if not body.startswith(b"{"):
        return True  # an SGLang server answers with an empty body
    workers: dict[str, Any] = json.loads(body)["workers"]
    return [worker["state"] for worker in workers.values()] == ["up"] * num_workers


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30):
        pass


def local_url(port: int) -> str:
    """A server of this machine."""
    return f"http://127.0.0.1:{port}"
