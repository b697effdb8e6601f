"""`--workers N` as processes: what becomes of fronts and brain when one of them goes."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.router_process import free_port
from tests.router.test_main import TIER_MAP, until_listening


def start(tmp_path: Path, port: int, *, in_file: bool = False) -> subprocess.Popen[str]:
    path = tmp_path / "map.yaml"
    text = TIER_MAP.format(port=port, control_port=free_port())
    path.write_text(text.replace("{port:", "{processes: 2, port:") if in_file else text)
    argv = [sys.executable, "-m", "conserve_sglang.router", "--tier-map", str(path)]
    argv += ["--no-state"] if in_file else ["--no-state", "--workers", "2"]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_family_stops_cleanly_when_told(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    process = start(tmp_path, port, in_file=number is signal.SIGINT)
    until_listening(process, port)
    fronts = children(process.pid)
    assert len(fronts) == 2
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{front}").exists() for front in fronts)


def test_fronts_stop_serving_when_the_brain_is_gone(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port)
    until_listening(process, port)
    fronts = children(process.pid)
    process.kill()
    _, said = process.communicate(timeout=30)  # ends when the fronts have closed it too
    assert said.count("this front stops serving") == 2
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{front}").exists() for front in fronts):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_refused(port)


def test_request_that_waits_for_the_brain_is_answered_when_that_is_gone(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port)
    until_listening(process, port)
    body = b'{"input": "more", "previous_response_id": "resp_1"}'
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        process.send_signal(signal.SIGSTOP)
        client.sendall(head.encode() + body)
        time.sleep(0.5)  # until the front has asked
        process.kill()
        told = client.recv(4096)
    _, said = process.communicate(timeout=30)
    assert told.startswith(b"HTTP/1.1 503 Service Unavailable")
    assert b"did not answer in time. Try again" in told
    assert "Traceback" not in said
