"""The processes of the demo: the launcher with its cluster, a stock server, a stock-PD router."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out"
TIER_MAP = ROOT / "tier_maps" / "cpu_local.yaml"
START_LIMIT_S = 240.0


class Cluster:
    """Addresses of what runs, and the count of KV transfers at their sender."""

    def __init__(self, tier_map: dict[str, Any], transfers: Path) -> None:
        self.model: str = tier_map["model"]["served_name"]
        self.router = _url(tier_map["router"]["port"])
        self.stock_pd_router = _url(tier_map["router"]["port"] + 10)
        self.stock = _url(STOCK_PORT)
        self.workers = [
            _url(tier["base_port"] + number)
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


STOCK_PORT = 30300


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start everything, wait until it answers, and take it down again."""
    tier_map = yaml.safe_load(TIER_MAP.read_text())
    OUT.mkdir(exist_ok=True)
    transfers = OUT / "demo_transfers.jsonl"
    transfers.unlink(missing_ok=True)
    cluster = Cluster(tier_map, transfers)
    env = {"CONSERVE_COUNT_TRANSFERS": "1", "CONSERVE_TRANSFER_LOG": str(transfers)}
    with ExitStack() as stack:
        for name, args in (
            ("launch", ["launch", "--tier-map", str(TIER_MAP), "--log-dir", str(OUT / "logs")]),
            ("stock", _stock_launch(tier_map)),
            ("stock_pd_router", ["route", "--tier-map", str(_stock_pd_map(tier_map))]),
        ):
            stack.enter_context(_process(name, args, env))
        _wait_until_up(cluster)
        yield cluster


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


@contextmanager
def _process(name: str, args: list[str], env: dict[str, str]) -> Iterator[None]:
    command = [str(Path(sys.executable).parent / "conserve-sglang"), *args]
    with (OUT / f"demo_{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | env, cwd=ROOT
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(cluster: Cluster) -> None:
    """Wait for both routers to have all their workers, and for the stock server."""
    deadline = time.monotonic() + START_LIMIT_S
    waiting = [cluster.router, cluster.stock_pd_router, cluster.stock]
    while waiting:
        waiting = [url for url in waiting if not _is_up(url, len(cluster.workers))]
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


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
