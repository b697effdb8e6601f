"""Holder, agent and controller together in real time, each as it runs, on GPUs that obey."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
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
slo: {{last_turn_tbt_s: 0.1}}
"""


TBT_BREAKS_BELOW_W = 150.0
CAPPED_W, DEMANDED_W = 576.0, 880.0
TICK_S = 0.1  # of the stand-in's energy counter


class Idle:
    num_open_turns = 0
    num_queued = 0


class Watched(PowerTask):
    """Notes of each period when it began and ended, and what the controller read."""

    periods: list[tuple[float, float, float]]

    async def _step(self, clock: Callable[[], float]) -> None:
        begun_s = clock()
        await super()._step(clock)
        if self.problem is None and self._seen is not None:
            self.periods.append((begun_s, clock(), self._seen.watts))


async def serve(machine: Machine, metrics: RouterMetrics) -> None:
    """20 turns a second, whose TBT is as GPU 1's cap in force makes it."""
    assert metrics.recent is not None
    loop = asyncio.get_running_loop()
    while True:
        begun_s, limit_w = loop.time(), machine.limit_in_force_w(1)
        await asyncio.sleep(0.05)
        tbt_s = 0.05 if limit_w >= TBT_BREAKS_BELOW_W else 0.2
        metrics.recent.tbt.append((begun_s, loop.time(), tbt_s))


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


@pytest.mark.flaky(reruns=2)  # periods of a second in real time: a busy machine comes late
async def test_a_deployment_keeps_its_budget_and_gives_its_caps_back(
    machine: Machine, tier_map_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tier_map = parse_tier_map(tier_map_path.read_text(), source="map", folder=tier_map_path.parent)
    metrics = RouterMetrics(keeps_latencies=True)
    task = Watched(
        tier_map, tell=lambda _: None, running=Idle(), metrics=lambda: metrics, admin_key=None
    )
    task.periods = []
    loop = asyncio.get_running_loop()
    serving = loop.create_task(serve(machine, metrics))
    task.start()
    deadline = loop.time() + 30
    while machine.limit_in_force_w(1) != 163.0:
        assert loop.time() < deadline, json.dumps(task.told())
        await asyncio.sleep(0.1)
    await asyncio.sleep(4.1)
    serving.cancel()
    told = task.told()
    assert told["problem"] is None
    # Decode's cap of 138 W broke its SLO, so prefill paid for a step, and that was enough.
    assert await asyncio.to_thread(machine.limits_w) == [250.0, 163.0, 163.0]
    assert [move["reason"] for move in told["moves"]] == ["over_budget", "tbt_slo", "tbt_slo"]
    assert told["watts"] == pytest.approx(CAPPED_W, abs=35)  # within a tick of the counter
    check_budget(task)
    record_property("slo_attainment", slo_attainment(task, metrics))
    record_property("periods_over_budget", task.reading().num_over)
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


def check_budget(task: Watched) -> None:
    """One period over the budget, as its mean has it. A live loop takes a moment from reading the
    counters to setting the limits, and the next period begins with that: it may be over by as much
    as was drawn meanwhile (76 ms of 880 W suffice for 600 W), and by a tick of the counter.
    """
    over = [number for number, period in enumerate(task.periods) if period[2] > 600.0]
    assert over
    assert over == list(range(over[0], over[0] + len(over)))
    assert len(over) <= 2, task.periods
    assert task.reading().num_over == len(over)
    if len(over) == 2:
        begun_s, end_s, _ = task.periods[over[0]]
        next_s, _, watts = task.periods[over[1]]
        at_most_s = end_s - begun_s + TICK_S
        assert watts <= CAPPED_W + (DEMANDED_W - CAPPED_W) * at_most_s / (next_s - end_s)


def slo_attainment(task: Watched, metrics: RouterMetrics) -> float:
    """The share of turns whose TBT met its SLO: all but those between the first two moves."""
    assert metrics.recent is not None
    first_s, second_s = (task.told()["moves"][number]["at_s"] for number in (0, -1))
    cost_s = max(end_s - begun_s for begun_s, end_s, _ in task.periods)
    broken = [begun_s for begun_s, _, tbt_s in metrics.recent.tbt if tbt_s > 0.1]
    assert broken
    assert first_s <= min(broken)
    assert max(broken) <= second_s + cost_s
    assert second_s - first_s <= 2 * 1.0 + 2 * cost_s  # five turns, and the next look
    return 1 - len(broken) / len(metrics.recent.tbt)
