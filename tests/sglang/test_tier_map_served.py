"""The shipped CPU tier map as its user runs it: launched, talked to, hurt, and taken down.

Last of these modules by its name: its servers come beside those of the shared cluster, which are
idle by then.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.tiny_model import write_model
from conserve_sglang.launcher.ports import is_free
from tests.sglang.cluster import MODEL, ROOT, Cluster, free_port
from tests.sglang.decoder import ids
from tests.sglang.routers import Router
from tests.sglang.talk import TokenTalk

pytestmark = pytest.mark.sglang

COMMAND = Path(sys.executable).parent / "conserve-sglang"
SHIPPED = ROOT / "tier_maps" / "cpu_local.yaml"
START_LIMIT_S = 240.0
STOP_LIMIT_S = 90.0
WORKERS = {"prefill-0", "decode-0", "decode-1"}


@dataclass(slots=True)
class Launch:
    """A launcher at work on a copy of the shipped map, and what it reported so far."""

    process: "subprocess.Popen[bytes]"
    router: Router
    folder: Path
    ports: list[int]

    def reports(self) -> list[dict[str, Any]]:
        lines = (self.folder / "reports.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def keepers(self, worker: str) -> list[int]:
        """The keepers under which a worker became ready, one after the other."""
        ready = [r for r in self.reports() if (r["step"], r.get("process")) == ("ready", worker)]
        return [report["pid"] for report in ready]

    def wait_until(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait until something holds; how long that took."""
        began = time.monotonic()
        while not condition():
            waited_s = time.monotonic() - began
            errors = (self.folder / "errors.txt").read_text()
            assert self.process.poll() is None, errors
            assert waited_s < START_LIMIT_S, f"{what}: not within {waited_s:.0f} s; {errors}"
            time.sleep(0.2)
        return time.monotonic() - began

    def serves(self) -> bool:
        """Whether the launcher says so, and nothing else of the deployment as a whole."""
        return [r["step"] for r in self.reports() if "process" not in r] == ["serving"]

    def all_up(self) -> bool:
        """Whether the router takes all workers for usable."""
        try:
            workers = self.router.health()["workers"]
        except OSError:
            return False
        return {name for name, worker in workers.items() if worker["state"] == "up"} == WORKERS


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    if not (MODEL / "config.json").exists():
        write_model(MODEL)
    tier_map = yaml.safe_load(SHIPPED.read_text())
    ports = move_ports(tier_map)
    tier_map["model"]["path"] = str(MODEL)
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(tier_map))
    command = [str(COMMAND), "launch", "--json", "--tier-map", "map.yaml", "--log-dir", "logs"]
    with (
        (tmp_path / "reports.jsonl").open("wb") as out,
        (tmp_path / "errors.txt").open("wb") as err,
    ):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=err)
    url, control_url = (
        f"http://127.0.0.1:{tier_map['router'][name]}" for name in ("port", "control_port")
    )
    try:
        yield Launch(process, Router(url, control_url, Cluster()), tmp_path, ports)
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        finally:
            process.kill()  # the keepers take their servers down
            process.wait()


def move_ports(tier_map: dict[str, Any]) -> list[int]:
    """Give a tier map ports that are free now; all of them."""
    taken: set[int | None] = set()
    prefill, decode = tier_map["tiers"]
    prefill["base_port"], prefill["bootstrap_base_port"] = free_port(taken), free_port(taken)
    decode["base_port"] = free_port(taken)
    while not is_free("127.0.0.1", decode["base_port"] + 1):
        decode["base_port"] = free_port(taken)
    taken.add(decode["base_port"] + 1)
    tier_map["router"] |= {"port": free_port(taken), "control_port": free_port(taken)}
    return [port for port in taken if port is not None]


def parents() -> dict[int, int]:
    """The parent of each process that is not a zombie."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def tree(root: int) -> set[int]:
    """A process and all below it."""
    parent_of = parents()
    found = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in found} - found:
        found |= more
    return found


def test_the_shipped_cpu_map_is_served_kept_up_and_taken_down(
    launch: Launch, record_property: Callable[[str, object], None]
) -> None:
    start_s = launch.wait_until("up", launch.all_up)
    record_property("start_s", round(start_s, 1))
    sys.stdout.write(f"cpu_local.yaml: up after {start_s:.0f} s\n")
    launch.wait_until("said to serve", launch.serves)

    talk = TokenTalk(launch.router.url, {"x-conversation-id": "shipped"})
    first, second = talk.turn(ids(300, 1)), talk.turn(ids(20, 2))
    assert (first.reason, first.prefiller) == ("first_turn", "prefill-0")
    assert (second.reason, second.prefiller) == ("pinned", None)
    assert first.decoder is not None
    assert second.decoder == first.decoder

    (keeper,) = launch.keepers(first.decoder)
    (server,) = [pid for pid, parent in parents().items() if parent == keeper]
    os.kill(server, signal.SIGKILL)
    lost = first.decoder
    launch.wait_until("restarted", lambda: len(launch.keepers(lost)) == 2)
    launch.wait_until("taken back by the router", launch.all_up)
    steps = [r["step"] for r in launch.reports() if r.get("process") == lost]
    steps = [step for step in steps if step != "loading"]  # as often as it takes long
    assert steps == ["starting", "ready", "died", "waiting", "starting", "ready"]
    third = talk.turn(ids(20, 3))
    assert (third.reason, third.prefiller) == ("decoder_lost", "prefill-0")
    assert talk.turn(ids(20, 4)).reason == "pinned"

    everything = tree(launch.process.pid)
    assert len(everything) > 2 * len(WORKERS)
    launch.process.send_signal(signal.SIGTERM)
    assert launch.process.wait(STOP_LIMIT_S) == 0
    assert (launch.folder / "errors.txt").read_text() == ""
    assert not everything & parents().keys()
    assert not [port for port in launch.ports if not is_free("127.0.0.1", port)]
