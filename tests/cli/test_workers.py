"""conserve-sglang workers, against a router over fake workers in a thread of its own."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.fakes.router_cluster import Cluster, a_cluster

from .conftest import RunCli


class Running:
    """A router with p0, d0, d1 behind it, and the tier map that leads to its control port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cluster: Cluster
        self.loop = asyncio.new_event_loop()
        self.is_up = threading.Event()
        self.is_over = asyncio.Event()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self.serve()))

    async def serve(self) -> None:
        async with a_cluster() as self.cluster:
            self.path.write_text(yaml.safe_dump(self.tier_map()))
            self.is_up.set()
            await self.is_over.wait()

    def tier_map(self) -> dict[str, object]:
        roles = {"p0": "prefill", "d0": "decode", "d1": "decode"}
        tiers = [
            {"name": name, "role": role, "gpu": "cpu", "base_port": self.cluster[name].port}
            | ({"bootstrap_base_port": 7} if role == "prefill" else {})
            for name, role in roles.items()
        ]
        router = {"control_port": self.cluster.service.control_port}
        model = {"path": "models/tiny", "served_name": "tiny"}
        return {"schema_version": 1, "model": model, "tiers": tiers, "router": router}

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.is_over.set)
        self.thread.join(20)
        self.loop.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "map.yaml")
    running.thread.start()
    try:
        assert running.is_up.wait(20)
        yield running
    finally:
        running.stop()


def test_workers_are_listed(run_cli: RunCli, running: Running) -> None:
    ran = run_cli("workers", "list", "--tier-map", running.path)
    assert ran.code == 0
    assert "p0" in ran.out
    listed = run_cli("workers", "list", "--json", "--tier-map", running.path)
    assert [worker["state"] for worker in json.loads(listed.out)] == ["up"] * 3


def test_worker_is_drained_and_undrained(run_cli: RunCli, running: Running) -> None:
    drained = run_cli("workers", "drain", "d0", "--tier-map", running.path)
    assert (drained.code, drained.out) == (0, "d0: drained\n")
    assert "draining" in run_cli("workers", "list", "--tier-map", running.path).out
    undrained = run_cli("workers", "undrain", "d0", "--tier-map", running.path)
    assert (undrained.code, undrained.out) == (0, "d0: up\n")


def test_worker_is_removed_and_added_again(run_cli: RunCli, running: Running) -> None:
    removed = run_cli("workers", "remove", "d1", "--tier-map", running.path)
    assert (removed.code, removed.out) == (0, "d1: removed\n")
    port = running.cluster["d1"].port
    options = ("--tier", "d1", "--port", port, "--tier-map", running.path)
    added = run_cli("workers", "add", "d1", *options)
    assert (added.code, added.out) == (0, "d1: added, unknown\n")


def test_refusal_is_told_in_the_routers_words(run_cli: RunCli, running: Running) -> None:
    ran = run_cli("workers", "drain", "d9", "--tier-map", running.path)
    assert (ran.code, ran.out) == (2, "")
    assert "There is no worker 'd9'" in ran.err


def test_no_router_is_an_error_that_says_what_to_look_at(run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    text = Path(__file__).parents[2].joinpath("tier_maps/cpu_local.yaml").read_text()
    path.write_text(text.replace("control_port: 30001", "control_port: 1"))
    ran = run_cli("workers", "list", "--tier-map", path)
    assert ran.code == 1
    assert "Is the router of this tier map running" in ran.err
