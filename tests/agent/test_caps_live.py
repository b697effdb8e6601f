"""Holder, agent and controller together in real time, each as it runs, on GPUs that obey."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conserve_sglang.energy.holding import KEY_VARIABLE
from conserve_sglang.router.power import PowerTask
from conserve_sglang.telemetry.metrics import RouterMetrics
from conserve_sglang.tiermap.load import parse_tier_map
from tests.energy.standin import Machine, build, uuid

HOLD = """
import sys
from conserve_sglang.energy.holding import Holding
from conserve_sglang.power.caps import Wish
names = ["p", "d", "d"]
holding = Holding(
    [Wish(host="x", index=n, tiers=(name,)) for n, name in enumerate(names)], print)
print(holding.socket_path, flush=True)
sys.stdin.readline()
holding.close()
"""
MAP = """
schema_version: 1
model: {{path: some/model}}
tiers:
  - {{name: p, role: prefill, gpu: A40, gpu_ids: [0], base_port: 30100,
      bootstrap_base_port: 30150}}
  - {{name: d, role: decode, gpu: A40, count: 2, gpu_ids: [1, 2], base_port: 30200}}
energy: {{meter: nvml, agent_port: {port}}}
power_budget_w: 600
"""


class Idle:
    num_open_turns = 0
    num_queued = 0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    library = tmp_path / "nvml"
    library.mkdir()
    # Real time, from the first process on: at second 4 all three begin to work.
    return Machine(build(library), tmp_path, demand="0:60,4:300;0:60,4:290;0:60,4:290")


@pytest.fixture
def tier_map_path(
    tmp_path: Path, machine: Machine, free_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.setenv(KEY_VARIABLE, "the-launch's-own")  # what the router shows the agent
    path = tmp_path / "map.yaml"
    path.write_text(MAP.format(port=free_tcp_port))
    holding = machine.start("-c", HOLD)
    assert holding.stdout is not None
    path_line = holding.stdout.readline().strip()
    own = {"CONSERVE_CAPS_SOCKET": path_line, KEY_VARIABLE: "the-launch's-own"}
    agent_env = {**machine.env, **own}
    agent = machine.start(
        "-m", "conserve_sglang.agent", "--tier-map", str(path), "--host", "127.0.0.1",
        "--phase-dir", str(tmp_path), env=agent_env,
    )  # fmt: skip
    yield path
    agent.send_signal(signal.SIGTERM)
    holding.communicate("\n", timeout=30)
    _, errors = agent.communicate(timeout=30)
    assert agent.returncode == 0, errors
    assert machine.limits_w() == [300.0] * 3


async def test_a_deployment_keeps_its_budget_and_gives_its_caps_back(
    machine: Machine, tier_map_path: Path
) -> None:
    tier_map = parse_tier_map(tier_map_path.read_text(), source="map", folder=tier_map_path.parent)
    metrics = RouterMetrics()
    task = PowerTask(
        tier_map, tell=lambda _: None, running=Idle(), metrics=lambda: metrics, admin_key=None
    )
    task.start()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30
    while not task.moves:
        assert loop.time() < deadline, json.dumps(task.told())
        await asyncio.sleep(0.1)
    while (task.told()["watts"] or 601) > 600:
        assert loop.time() < deadline, json.dumps(task.told())
        await asyncio.sleep(0.1)
    await asyncio.sleep(2.1)
    told = task.told()
    # One, in virtual time (tests/energy/test_closed_loop.py); a busy machine may lose a period.
    assert 1 <= task.reading().num_over <= 3, told
    # A second of real time holds 10 steps of the counter, one more or less.
    assert told["watts"] == pytest.approx(576, rel=0.11)
    assert await asyncio.to_thread(machine.limits_w) == [300.0, 138.0, 138.0]
    assert told["problem"] is None
    # A router that is gone: its lease runs out, and the launch's caps are back.
    assert task._task is not None
    task._task.cancel()
    deadline = loop.time() + 10
    while await asyncio.to_thread(machine.limits_w) != [300.0] * 3:
        assert loop.time() < deadline
        await asyncio.sleep(0.2)
    writes = (machine.records / "writes.jsonl").read_text()
    assert f'"gpu": "{uuid(1)}"' in writes
    assert "the controller's lease is over" in writes
    task._task = None
    await task.stop()
