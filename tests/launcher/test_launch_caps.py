"""A launch that sets power caps, on GPUs that obey them, with a stand-in for SGLang."""

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.energy.standin import Machine, build, uuid

from .conftest import Ports
from .test_launch_command import Deployment, wait_until

MAP = """
schema_version: 1
model: {{path: ./model}}
tiers:
  - {{name: p, role: prefill, gpu: A40, gpu_ids: [0], base_port: {0}, bootstrap_base_port: {1},
      sm_clock_mhz: 1500, sglang_flags: {{straggler: {1}}}}}
  - {{name: d, role: decode, gpu: A40, gpu_ids: [1], base_port: {2}, power_cap_w: 200}}
router: {{port: {3}, control_port: {4}}}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    library = tmp_path / "nvml"
    library.mkdir()
    return Machine(build(library), tmp_path, demand="0:70;0:70;0:70")


@pytest.fixture
def deployment(machine: Machine, tmp_path: Path, free_ports: Ports) -> Iterator[Deployment]:
    made = Deployment(tmp_path, free_ports(5))
    made.env = {**machine.env, "PYTHONPATH": made.env["PYTHONPATH"]}
    (tmp_path / "map.yaml").write_text(MAP.format(*made.ports))
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_caps_are_in_force_while_it_serves_and_put_back_however_it_ends(
    deployment: Deployment, machine: Machine, number: signal.Signals
) -> None:
    launcher, reports = deployment.serve()
    assert machine.limits_w() == [300, 200, 300]
    said = [report["message"] for report in reports if report["step"] == "notice"]
    assert any("power cap 300 -> 200 W" in line for line in said)
    first_worker = next(n for n, report in enumerate(reports) if report["step"] == "starting")
    assert reports[first_worker - 1]["step"] == "notice"  # set before anything starts
    launcher.send_signal(number)
    launcher.wait(timeout=30)
    wait_until(lambda: not list(machine.records.glob("*.json")))
    assert machine.limits_w() == [300, 300, 300]
    assert "0 reset_clocks 0 done" in machine.writes()


def test_without_permission_nothing_starts(deployment: Deployment, machine: Machine) -> None:
    deployment.env["STANDIN_NVML_ROOT"] = "0"
    code, errors = deployment.fail()
    assert code == 3
    assert "needs root or CAP_SYS_ADMIN" in errors
    assert "--no-caps" in errors
    assert not (deployment.folder / "out" / "logs" / "p-0.log").read_bytes()
    assert machine.limits_w() == [300, 300, 300]


def test_it_serves_without_caps_if_told_so(deployment: Deployment, machine: Machine) -> None:
    launcher = deployment.start("--json", "--no-caps")
    assert launcher.stdout is not None
    steps = []
    for line in launcher.stdout:
        steps.append(json.loads(line))
        if steps[-1]["step"] == "serving":
            break
    assert "--no-caps" in steps[0]["message"]
    assert machine.writes() == []


def test_a_map_under_a_budget_has_all_its_gpus_in_hand_for_the_agent(
    deployment: Deployment, machine: Machine, free_ports: Ports
) -> None:
    agent_port = free_ports(1)[0]
    path = deployment.folder / "map.yaml"
    text = path.read_text().replace(", power_cap_w: 200", "")
    path.write_text(
        text + f"power_budget_w: 500\nenergy: {{meter: nvml, agent_port: {agent_port}}}\n"
    )
    launcher, _ = deployment.serve()
    with urllib.request.urlopen(f"http://127.0.0.1:{agent_port}/caps", timeout=10) as answer:
        gpus = json.loads(answer.read())["gpus"]
    assert {name: (gpu["cap_w"], gpu["tiers"]) for name, gpu in gpus.items()} == {
        uuid(0): (300.0, ["p"]),
        uuid(1): (300.0, ["d"]),
    }
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(timeout=30)
    assert machine.limits_w() == [300, 300, 300]
    assert not any(line.startswith("2 ") for line in machine.writes())
