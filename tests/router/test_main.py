"""The router as a process: starts, says what is wrong, stops when told."""

import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.fakes.router_process import free_port

TIER_MAP = """
schema_version: 1
model: {{path: some/model, served_name: tiny}}
tiers:
  - {{name: m, role: mixed, gpu: cpu, base_port: 1}}
policy: {{name: colocated}}
router: {{port: {port}, control_port: {control_port}}}
"""


def start(
    tmp_path: Path, port: int, control_port: int, under: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    path = tmp_path / "map.yaml"
    path.write_text(TIER_MAP.format(port=port, control_port=control_port))
    argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(path)]
    return subprocess.Popen([*under, *argv], stderr=subprocess.PIPE, text=True)


def until_listening(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except urllib.error.HTTPError as answered:
            answered.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the router did not come up")


def test_stops_cleanly_when_told(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        port = free_port()
        process = start(tmp_path, port, free_port())
        until_listening(process, port)
        process.send_signal(signal.SIGHUP)  # nothing to read again, and no reason to end
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said
        assert said.index("stopping") < said.index("stopped")
        assert "worker m-0 is not up: " in said


def test_descriptor_limit_is_raised_as_far_as_allowed(tmp_path: Path) -> None:
    lowered = ("sh", "-c", 'ulimit -n 1024; ulimit -Sn 256; exec "$@"', "sh")
    port = free_port()
    process = start(tmp_path, port, free_port(), lowered)
    until_listening(process, port)
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    process.terminate()
    process.communicate(timeout=30)
    assert limits == (1024, 1024)


def test_port_in_use_is_said_with_the_field_to_change(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for ports, field in (
            ((port, free_port()), "router.port"),
            ((free_port(), port), "router.control_port"),
        ):
            process = start(tmp_path, *ports)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2
            assert f"{field}: cannot listen on 127.0.0.1:{port}" in said
            assert "Traceback" not in said


def test_bad_tier_map_is_said_and_nothing_started(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(tmp_path / "no.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_unknown_log_level_is_said_without_a_traceback() -> None:
    argv = [
        sys.executable,
        "-m",
        "conserve_sglang.router",
        "--tier-map",
        "x",
        "--log-level",
        "loud",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'loud'" in done.stderr
    assert "Traceback" not in done.stderr


def test_log_is_written_as_every_process_of_ours_writes_it(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port, free_port())
    until_listening(process, port)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert "INFO    conserve_sglang.router" in said


def test_a_policy_that_servers_cannot_run_is_refused(tmp_path: Path) -> None:
    tiers = (
        "tiers:\n  - {name: p, role: prefill, gpu: cpu, base_port: 1, bootstrap_base_port: 9}\n"
        "  - {name: d, role: decode, gpu: cpu, base_port: 2}\n"
    )
    text = TIER_MAP.format(port=free_port(), control_port=free_port())
    before, after = text.split("tiers:\n")
    after = after.split("\n", 1)[1].replace("colocated", "coin-flip")
    path = tmp_path / "map.yaml"
    path.write_text(before + tiers + after)
    argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "policy coin-flip is simulated only: it would need KV sent from a decode" in done.stderr
    assert "Traceback" not in done.stderr
