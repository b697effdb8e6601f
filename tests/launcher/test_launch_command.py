"""The launch command as a process, with a package that stands in for SGLang.

What is tested here is what only a real process can show: signals, kill -9, exit codes, and that
nothing is left behind.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.launcher.ports import is_free

from .conftest import STANDIN, Ports

COMMAND = Path(sys.executable).parent / "conserve-sglang"
MAP = """
schema_version: 1
model: {{path: ./model}}
tiers:
  - {{name: p, role: prefill, gpu: cpu, base_port: {0}, bootstrap_base_port: {1},
      sglang_flags: {{straggler: {1}}}}}
  - {{name: d, role: decode, gpu: cpu, base_port: {2}, sglang_flags: {{ignore-term: {3}}}}}
router: {{port: {4}, control_port: {5}}}
"""


class Deployment:
    """A tier map on free ports in a folder of its own, and the launchers started on it."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.ports = ports
        paths = os.pathsep.join([str(folder / "stand_ins"), os.environ.get("PYTHONPATH", "")])
        self.env = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}
        self._launchers: list[subprocess.Popen[str]] = []
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        self.write_module("sglang/__init__.py", "")
        self.write_module(
            "sglang/launch_server.py",
            f"import runpy\nrunpy.run_path({str(STANDIN)!r}, run_name='__main__')\n",
        )
        self.write_module("mooncake/__init__.py", "")
        self.write_module("mooncake/engine.py", "TransferEngine = None\n")
        self.write_map()

    def write_module(self, name: str, text: str) -> None:
        path = self.folder / "stand_ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def write_map(self, *, ignore_term: bool = False) -> None:
        text = MAP.format(*self.ports[:3], str(ignore_term).lower(), *self.ports[3:])
        (self.folder / "map.yaml").write_text(text)

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [str(COMMAND), "launch", "--tier-map", "map.yaml", "--no-router", *args]
        launcher = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._launchers.append(launcher)
        return launcher

    def fail(self) -> tuple[int, str]:
        """Exit code and stderr of a launch that ends by itself."""
        launcher = self.start()
        _, errors = launcher.communicate(timeout=30)
        return launcher.returncode, errors

    def serve(self) -> tuple[subprocess.Popen[str], list[dict[str, Any]]]:
        """A launch that has come as far as serving, and what it reported until then."""
        launcher = self.start("--json")
        assert launcher.stdout is not None
        reports = []
        for line in launcher.stdout:
            reports.append(json.loads(line))
            if reports[-1]["step"] == "serving":
                wait_until(lambda: not any(is_free("127.0.0.1", port) for port in self.ports[:3]))
                return launcher, reports
        raise AssertionError(launcher.communicate(timeout=30)[1])

    def close(self) -> None:
        for launcher in self._launchers:
            launcher.kill()
            launcher.communicate(timeout=30)


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def session_is_empty(session: int) -> bool:
    """No process but zombies belongs to the session any more."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(sid) == session and state != "Z":
            return False
    return True


@pytest.fixture
def deployment(tmp_path: Path, free_ports: Ports) -> Iterator[Deployment]:
    made = Deployment(tmp_path, free_ports(5))
    yield made
    made.close()


def sessions(reports: list[dict[str, Any]]) -> list[int]:
    return [report["pid"] for report in reports if report["step"] == "ready"]


def all_gone(deployment: Deployment, reports: list[dict[str, Any]]) -> bool:
    return all(is_free("127.0.0.1", port) for port in deployment.ports) and all(
        session_is_empty(session) for session in sessions(reports)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything_and_is_no_failure(
    deployment: Deployment, number: signal.Signals
) -> None:
    launcher, reports = deployment.serve()
    launcher.send_signal(number)
    output, errors = launcher.communicate(timeout=30)
    assert (launcher.returncode, errors) == (0, "")
    assert [json.loads(line)["step"] for line in output.splitlines()] == ["stopping", "stopped"]
    assert all_gone(deployment, reports)


def test_kill_9_of_the_launcher_leaves_no_orphan_and_no_held_port(deployment: Deployment) -> None:
    deployment.write_map(ignore_term=True)
    launcher, reports = deployment.serve()
    assert len(sessions(reports)) == 2
    launcher.kill()
    wait_until(lambda: all_gone(deployment, reports))


def test_a_signal_while_starting_stops_everything(deployment: Deployment) -> None:
    deployment.write_module("sglang/launch_server.py", "import time\ntime.sleep(600)\n")
    launcher = deployment.start("--json")
    assert launcher.stdout is not None
    reports = [json.loads(launcher.stdout.readline()) for _ in range(2)]
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    assert all(session_is_empty(report["pid"]) for report in reports)


def test_lines_are_plain_when_stdout_is_no_terminal(deployment: Deployment) -> None:
    launcher = deployment.start()
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "p-0: starting, log in out/logs/p-0.log\n"


def test_a_worker_that_fails_is_named_with_its_log(deployment: Deployment) -> None:
    deployment.write_module("sglang/launch_server.py", "raise SystemExit('no such flag')\n")
    code, errors = deployment.fail()
    assert code == 1
    assert "ended with exit code 1 before it became healthy" in errors
    assert "  | no such flag" in errors
    assert "Traceback" not in errors


def test_a_port_in_use_is_named_with_its_owner_before_anything_starts(
    deployment: Deployment,
) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", deployment.ports[2]))
        squatter.listen()
        code, errors = deployment.fail()
    assert code == 1
    assert "nothing was started" in errors
    assert f"port {deployment.ports[2]} on 127.0.0.1, which d-0 is to listen on" in errors
    assert f"is in use by process {os.getpid()}" in errors
    assert not (deployment.folder / "out").exists()


def test_a_missing_transfer_engine_says_what_to_install(deployment: Deployment) -> None:
    deployment.write_module(
        "mooncake/engine.py", "raise ModuleNotFoundError(\"No module named 'mooncake.engine'\")\n"
    )
    code, errors = deployment.fail()
    assert code == 1
    assert "the transfer engine mooncake cannot be loaded" in errors
    assert "pip install mooncake-transfer-engine-non-cuda" in errors


def test_a_transfer_engine_without_its_libraries_says_which_packages(
    deployment: Deployment,
) -> None:
    deployment.write_module(
        "mooncake/engine.py", "raise ImportError('libibverbs.so.1: cannot open shared object')\n"
    )
    code, errors = deployment.fail()
    assert code == 1
    assert "libibverbs.so.1" in errors
    assert "apt-get install libibverbs1 libnuma1" in errors


def test_a_missing_model_folder_is_named(deployment: Deployment) -> None:
    (deployment.folder / "model" / "config.json").unlink()
    code, errors = deployment.fail()
    assert code == 1
    assert f"the model folder {deployment.folder}/model has no config.json" in errors


def test_a_wrong_tier_map_is_the_users_to_mend(deployment: Deployment) -> None:
    (deployment.folder / "map.yaml").write_text("schema_version: 1\nmodle: {path: m}\n")
    code, errors = deployment.fail()
    assert code == 2
    assert errors == "error: map.yaml: modle: unknown field; did you mean model?\n"
