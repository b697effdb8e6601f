"""The live view: against a router that is there, one that is not, and at several widths."""

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.telemetry.prometheus import BreakerReading, Exporter
from tests.cli.conftest import RunCli
from tests.telemetry.test_metrics import GAUGES, LOAD, REPORT, counted

COMMAND = Path(sys.executable).parent / "conserve-sglang"
KEY = "let-me-in"


class _Router(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers["authorization"] != f"Bearer {KEY}":
            self.send_error(401)
            return
        standing = BreakerReading(2, 1)
        second = replace(LOAD, worker_id=WorkerId("d1"), is_up=False, takes_turns=False)
        gauges = replace(
            GAUGES,
            workers=(LOAD, second),
            reports={WorkerId("d0"): REPORT},
            breakers={WorkerId("d0"): standing},
        )
        body = Exporter(counted, lambda: gauges, "conserve").text()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def a_router() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Router)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", KEY)


@pytest.mark.parametrize("width", [40, 52, 80, 120, 200])
def test_one_frame_fits_any_width_and_never_invents(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with a_router() as url:
        ran = run_cli("top", "--url", url, "--key-env", "ADMIN", "--once", "--interval", "0.2")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in ran.out
    (row,) = [line for line in lines if line.startswith("  d0")]
    assert "50%" in row
    if width >= 80:
        assert "35%" in row
        assert "open" in row
    if width >= 120:
        assert row.rstrip().endswith("-")  # watts
    (down,) = [line for line in lines if line.startswith("  d1")]
    assert "not up" in down


def test_json_has_the_same_numbers(run_cli: RunCli) -> None:
    with a_router() as url:
        ran = run_cli("top", "--url", url, "--key-env", "ADMIN", "--json", "--interval", "0.2")
    document = json.loads(ran.out)
    first = document["workers"][0]
    assert (first["name"], first["resident_tokens"], first["watts"]) == ("d0", 400, None)
    assert document["router"]["turns_per_s"] == 0.0


def test_a_missing_key_and_a_router_that_is_not_there_say_what_to_do(run_cli: RunCli) -> None:
    with a_router() as url:
        ran = run_cli("top", "--url", url, "--once")
        assert ran.code == 1
        assert "answered 401" in ran.err
        assert "--key-env" in ran.err
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADMIN", "of another router")
            ran = run_cli("top", "--url", url, "--key-env", "ADMIN", "--once")
        assert ran.code == 1
        assert "not accepted" in ran.err
        assert "router.control_port, not router.port" in ran.err
        assert "--key-env" not in ran.err
    ran = run_cli("top", "--url", url, "--once")
    assert ran.code == 1
    assert "router.control_port" in ran.err
    assert "https:// where router.tls is set" in ran.err
    ran = run_cli("top", "--url", url, "--key-env", "NO_SUCH_VARIABLE", "--once")
    assert ran.code == 2
    assert "NO_SUCH_VARIABLE is not set" in ran.err


def test_the_live_view_needs_a_terminal(run_cli: RunCli) -> None:
    with a_router() as url:
        ran = run_cli("top", "--url", url, "--key-env", "ADMIN")
    assert ran.code == 2
    assert "--once" in ran.err


def test_q_ends_the_live_view_and_leaves_the_terminal_as_it_was() -> None:
    with a_router() as url:
        parent, child = pty.openpty()
        argv = [str(COMMAND), "top", "--url", url, "--key-env", "ADMIN", "--interval", "0.3"]
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        process = subprocess.Popen(argv, stdin=child, stdout=child, stderr=child, env=environ)
        shown = b""
        deadline = time.monotonic() + 30
        while b"d0" not in shown and time.monotonic() < deadline:
            if select.select([parent], [], [], 0.2)[0]:
                shown += os.read(parent, 65536)
        assert b"KV by ledger" in shown
        os.write(parent, b"q")
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([parent], [], [], 0.1)[0]:
                shown += os.read(parent, 65536)
        assert process.returncode == 0
        while select.select([parent], [], [], 0.1)[0]:
            shown += os.read(parent, 65536)
        assert b"\x1b[?1049l" in shown  # back from the alternate screen
        os.close(parent)
        os.close(child)
