"""Caps set, held and put back through NVIDIA's own bindings, on GPUs that obey them.

What is tested here is what only processes can show: signals, kill -9, and what outlives them.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.energy.standin import Machine, uuid

MAP = """
schema_version: 1
model: {{path: some/model}}
tiers:
  - {{name: p, role: prefill, gpu: A40, gpu_ids: [0], base_port: 30100,
      bootstrap_base_port: 30150{p}}}
  - {{name: d, role: decode, gpu: A40, count: 2, gpu_ids: [1, 2], base_port: 30200{d}}}
"""
HOLD = """
import os, signal, sys
from conserve_sglang.energy.holding import Holding
from conserve_sglang.power.caps import Wish
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
holding = Holding([
    Wish(host="x", index=int(index), tiers=("d",), power_cap_w=float(watts))
    for index, watts in (pair.split(":") for pair in sys.argv[1:])
], lambda line: print(line, flush=True), lease_s=float(os.environ.get("LEASE_S", "10")))
print("held", holding.pid, holding.socket_path, flush=True)
sys.stdin.readline()
holding.close()
"""


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    return Machine(library, tmp_path, demand="0:70;0:70;0:70;0:70")


class Held:
    """A process that holds caps, and its holder."""

    def __init__(self, machine: Machine, *caps: str) -> None:
        self.process = machine.start("-c", HOLD, *caps)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert words[:1] == ["held"], (words, self.process.communicate())
        self.holder, self.socket = int(words[1]), words[2]

    def ask(self, **what: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self.socket)
            line.sendall(json.dumps(what).encode() + b"\n")
            answer: dict[str, Any] = json.loads(line.makefile().readline())
        return answer

    def end(self) -> str:
        said, _ = self.process.communicate("\n", timeout=30)
        return said


@pytest.fixture
def hold(machine: Machine) -> Iterator[Callable[..., Held]]:
    started: list[Held] = []

    def begin(*caps: str) -> Held:
        started.append(Held(machine, *caps))
        return started[-1]

    yield begin
    for held in started:
        held.process.kill()
        held.process.communicate()
        until(lambda held=held: not is_alive(held.holder))  # type: ignore[misc]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def a_map(folder: Path, p: str = "", d: str = "") -> str:
    path = folder / "map.yaml"
    path.write_text(MAP.format(p=p, d=d))
    return str(path)


def records(machine: Machine) -> list[str]:
    return [path.name for path in machine.records.glob("*.json")]


def test_a_dry_run_shows_the_plan_and_writes_nothing(machine: Machine, tmp_path: Path) -> None:
    path = a_map(tmp_path, d=", power_cap_w: 200, sm_clock_mhz: 1200")
    for words in (["caps", "plan"], ["caps", "apply"], ["launch", "--dry-run"]):
        done = machine.command(*words, "--tier-map", path)
        assert done.returncode == 0, done.stderr
        assert f"GPU 1 ({uuid(1)}): power cap 300 -> 200 W" in done.stdout
        assert f"GPU 2 ({uuid(2)}): SM clock 1200 MHz" in done.stdout
        assert uuid(0) not in done.stdout
    assert machine.writes() == []
    assert not machine.records.exists()


def test_a_dry_run_ends_as_the_plan_does_where_caps_cannot_be_set(
    machine: Machine, tmp_path: Path
) -> None:
    path = a_map(tmp_path, d=", power_cap_w: 90000")
    for words, code in (
        (["caps", "plan"], 3),
        (["launch", "--dry-run"], 3),
        (["launch", "--dry-run", "--no-caps"], 0),
    ):
        done = machine.command(*words, "--tier-map", path)
        assert (done.returncode, "refused: " in done.stdout) == (code, True), done.stdout


def test_held_caps_are_in_force_and_put_back_at_the_end(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    machine.set_limit(1, 250)  # not the default: what was there is put back, not the most there is
    held = hold("1:200", "2:150")
    assert machine.limits_w() == [300, 200, 150, 300]
    assert len(records(machine)) == 2
    said = held.end()
    assert machine.limits_w() == [300, 250, 300, 300]
    assert "power limit put back to 250 W" in said
    assert records(machine) == []
    assert not any(line.startswith(("0", "3")) for line in machine.writes())


def test_the_record_is_on_disk_before_the_first_write(machine: Machine) -> None:
    """A GPU whose setter fails without a reason: what was found is known all the same."""
    machine.settings["deny"] = "1"
    done = machine.run("-c", HOLD, "1:200")
    assert "cannot set the power limit" in done.stderr
    lines = (machine.records / "writes.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["after"] == 200.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_caps_are_put_back_however_their_owner_ends(
    machine: Machine, hold: Callable[..., Held], number: signal.Signals
) -> None:
    held = hold("1:200")
    held.process.send_signal(number)
    until(lambda: not is_alive(held.holder))
    assert machine.limits_w()[1] == 300
    assert records(machine) == []


def test_a_frozen_owner_loses_its_caps(
    machine: Machine, hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_S", "3")
    held = hold("1:200")
    held.process.send_signal(signal.SIGSTOP)
    until(lambda: not is_alive(held.holder))
    assert machine.limits_w()[1] == 300
    held.process.send_signal(signal.SIGCONT)
    assert "no heartbeat for 3 s" in held.end()


def test_an_owner_puts_back_what_its_killed_holder_cannot(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:200")
    os.kill(held.holder, signal.SIGKILL)
    until(lambda: records(machine) == [])
    assert machine.limits_w()[1] == 300
    assert "was killed; putting GPUs back" in held.end()


def test_doctor_restores_what_kill_9_of_both_has_left(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:200", "2:150")
    os.kill(held.holder, signal.SIGSTOP)
    held.process.kill()
    os.kill(held.holder, signal.SIGKILL)
    until(lambda: not is_alive(held.holder))
    assert machine.limits_w() == [300, 200, 150, 300]
    assert "Caps left behind: GPU 1" in machine.command("doctor").stdout
    refused = machine.run("-c", HOLD, "1:250")
    assert "doctor --restore" in refused.stderr
    done = machine.command("doctor", "--restore")
    assert done.returncode == 0, done.stderr
    assert machine.limits_w() == [300, 300, 300, 300]
    assert records(machine) == []
    assert "nothing to put back" in machine.command("doctor", "--restore").stdout


def test_what_another_hand_has_set_is_left_unless_forced(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:200")
    os.kill(held.holder, signal.SIGSTOP)
    held.process.kill()
    os.kill(held.holder, signal.SIGKILL)
    until(lambda: not is_alive(held.holder))
    machine.set_limit(1, 120)
    done = machine.command("doctor", "--restore")
    assert "left at 120 W, which somebody else has set" in done.stdout
    assert machine.limits_w()[1] == 120


def test_nobody_else_holds_a_gpu_in_hand(machine: Machine, hold: Callable[..., Held]) -> None:
    held = hold("1:200")
    done = machine.run("-c", HOLD, "2:150", "1:150")
    assert f"in the hands of process {held.holder}" in done.stderr
    assert machine.limits_w()[1:3] == [200, 300]
    restored = machine.command("doctor", "--restore")
    assert restored.returncode == 3
    assert "running process" in restored.stdout
    assert machine.limits_w()[1] == 200


def test_without_permission_nothing_is_set_and_that_has_an_exit_code(
    machine: Machine, tmp_path: Path
) -> None:
    machine.settings["root"] = "0"
    path = a_map(tmp_path, d=", power_cap_w: 200")
    done = machine.command("caps", "apply", "--write", "--tier-map", path)
    assert done.returncode == 3
    assert "needs root or CAP_SYS_ADMIN (NVML: Insufficient Permissions)" in done.stderr
    assert "Traceback" not in done.stderr
    assert (machine.limits_w(), records(machine)) == ([300] * 4, [])


def test_a_gpu_that_fails_takes_back_those_set_before(machine: Machine) -> None:
    machine.settings["deny"] = "2"
    done = machine.run("-c", HOLD, "1:200", "2:150")
    assert "cannot set the power limit" in done.stderr
    assert machine.limits_w() == [300] * 4
    assert machine.writes() == [
        "1 power_limit_mw 200000 done",
        "2 power_limit_mw 150000 refused",
        "1 power_limit_mw 300000 done",
    ]
    assert records(machine) == []


def test_a_gpu_split_by_mig_is_never_touched(machine: Machine, tmp_path: Path) -> None:
    machine.settings["mig"] = "2"
    path = a_map(tmp_path, d=", power_cap_w: 200")
    done = machine.command("caps", "apply", "--write", "--tier-map", path)
    assert done.returncode == 3
    assert "MIG" in done.stderr
    assert machine.writes() == []


def test_clocks_are_locked_and_reset(machine: Machine, tmp_path: Path) -> None:
    path = a_map(tmp_path, d=", sm_clock_mhz: 1200")
    applied = machine.begin("caps", "apply", "--write", "--tier-map", path)
    assert applied.stdout is not None
    while "Ctrl-C" not in applied.stdout.readline():
        assert applied.poll() is None
    applied.send_signal(signal.SIGINT)
    said, errors = applied.communicate(timeout=30)
    assert (applied.returncode, errors) == (0, "")
    assert said.count("SM clock reset") == 2
    clocks = [line for line in machine.writes() if "clocks" in line]
    assert clocks == [
        "1 lock_clocks_mhz 1200 done", "2 lock_clocks_mhz 1200 done",
        "1 reset_clocks 0 done", "2 reset_clocks 0 done",
    ]  # fmt: skip


def test_a_controller_moves_caps_for_as_long_as_it_speaks(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:250", "2:250")
    answer = held.ask(caps={uuid(1): 180.0}, lease_s=1.0, why="over budget")
    assert answer["gpus"][uuid(1)]["cap_w"] == 180.0
    assert machine.limits_w() == [300, 180, 250, 300]
    until(lambda: machine.limits_w()[1] == 250)  # the lease is over: back to the start's limit
    for caps, message in (
        ({uuid(1): 251.0}, "out of range"),
        ({uuid(1): 99.0}, "out of range"),
        ({uuid(3): 200.0}, "not in hand"),
    ):
        assert message in held.ask(caps=caps)["error"]
    assert "error" not in held.ask()
    assert machine.limits_w() == [300, 250, 250, 300]
    notes = (machine.records / "writes.jsonl").read_text()
    assert "over budget" in notes
    assert "the controller's lease is over" in held.end() or "lease is over" in notes


def test_a_foreign_change_ends_the_control_of_that_gpu(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:250", "2:250")
    machine.set_limit(1, 220)
    assert held.ask(caps={uuid(1): 180.0, uuid(2): 180.0})["gpus"][uuid(1)]["is_foreign"]
    assert machine.limits_w() == [300, 220, 180, 300]
    said = held.end()
    assert "somebody else has set its power limit to 220 W (ours was 250 W)" in said
    assert machine.limits_w() == [300, 220, 300, 300]  # theirs is left


def test_a_folder_of_records_that_cannot_be_read_is_not_taken_for_empty(
    machine: Machine,
) -> None:
    machine.records.parent.mkdir(exist_ok=True)
    machine.records.write_text("no folder")
    refused = machine.command("doctor", "--restore")
    assert "is not known" in refused.stdout + refused.stderr
    assert refused.returncode != 0


def test_only_its_own_user_may_speak_to_the_holder(
    machine: Machine, hold: Callable[..., Held]
) -> None:
    held = hold("1:200")
    assert os.stat(held.socket).st_mode & 0o077 == 0
    assert os.stat(machine.records).st_mode & 0o077 == 0
    assert "not a request" in held.ask(caps=[1])["error"]


def test_launch_sets_nothing_when_something_else_stops_it(machine: Machine, tmp_path: Path) -> None:
    path = Path(a_map(tmp_path, d=", power_cap_w: 200"))
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = str(squatter.getsockname()[1])
        path.write_text(path.read_text().replace("30200", taken))
        done = machine.command("launch", "--tier-map", str(path))
    assert done.returncode == 1, done.stderr
    assert f"port {taken}" in done.stderr
    assert machine.writes() == []


def test_the_bindings_return_codes_are_read(machine: Machine) -> None:
    """Why version 1 of the setter: version 2 of these bindings says nothing of a refusal."""
    machine.settings["root"] = "0"
    code = (
        "import json, pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)\n"
        "try: n.nvmlDeviceSetPowerManagementLimit(h, 200000); print(json.dumps('silent'))\n"
        "except n.NVMLError_NoPermission as e: print(json.dumps(str(e)))"
    )
    assert machine.evaluate(code) == "Insufficient Permissions"


def test_a_machine_without_a_driver_plans_and_refuses_to_apply(tmp_path: Path) -> None:
    machine = Machine(tmp_path, tmp_path)
    path = a_map(tmp_path, d=", power_cap_w: 200")
    done = machine.command("caps", "plan", "--tier-map", path)
    assert done.returncode == 0
    assert "tier d: GPU 1 of 127.0.0.1: power cap 200 W" in done.stdout
    assert "not checked against the GPUs" in done.stdout
    applied = machine.command("caps", "apply", "--write", "--tier-map", path)
    assert (applied.returncode, "NVIDIA driver" in applied.stderr) == (3, True)
