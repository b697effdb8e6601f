"""A deployment with every key and certificate set, as its user launches it."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.tiny_model import write_model
from conserve_sglang.tiermap.keys import new_key
from tests.fakes.certificates import Authority
from tests.sglang.cluster import MODEL, ROOT, free_port

pytestmark = pytest.mark.sglang

COMMAND = Path(sys.executable).parent / "conserve-sglang"
START_LIMIT_S = 240.0
STOP_LIMIT_S = 90.0
SECRETS = {"W_KEY": "marked-worker-key", "A_KEY": "marked-admin-key"}


@dataclass(frozen=True, slots=True)
class Secured:
    """A running deployment, and what its clients need."""

    folder: Path
    ports: dict[str, int]
    key: str
    tls: ssl.SSLContext
    pid: int

    def ask(
        self, port: str, path: str, body: Any = None, key: str = "", method: str | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.ports[port]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", "x-conversation-id": "task"},
            method=method,
        )
        if key:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.tls) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None, dict(error.headers)


def write_map(folder: Path, authority: Authority, ports: dict[str, int]) -> None:
    tier_map = yaml.safe_load((ROOT / "tier_maps" / "cpu_local.yaml").read_text())
    tier_map["model"]["path"] = str(MODEL)
    worker, router = authority.issue("worker"), authority.issue("router")
    for tier in tier_map["tiers"]:
        tier["count"] = 1
        tier["base_port"] = ports[tier["name"]]
        tier["sglang_flags"] = {
            **tier["sglang_flags"],
            "ssl-certfile": worker.cert_file,
            "ssl-keyfile": worker.key_file,
        }
    tier_map["tiers"][0]["bootstrap_base_port"] = ports["bootstrap"]
    tier_map["router"] |= {
        "port": ports["main"],
        "control_port": ports["control"],
        "auth": {"keys_file": "keys.yaml"},
        "worker_api_key_env": "W_KEY",
        "admin_key_env": "A_KEY",
        "tls": {"cert_file": router.cert_file, "key_file": router.key_file},
        "worker_tls": {"ca_file": str(authority.file)},
        "state": None,
    }
    (folder / "map.yaml").write_text(yaml.safe_dump(tier_map))


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    if not (MODEL / "config.json").exists():
        write_model(MODEL)
    taken: set[int | None] = set()
    names = ("prefill", "decode", "bootstrap", "main", "control")
    ports = {name: free_port(taken) for name in names}
    authority = Authority(tmp_path)
    write_map(tmp_path, authority, ports)
    key = new_key(tmp_path / "keys.yaml", "team")
    command = [str(COMMAND), "launch", "--json", "--tier-map", "map.yaml", "--log-dir", "logs"]
    reports = tmp_path / "reports.jsonl"
    with reports.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=out, stderr=out, env={**os.environ, **SECRETS}
        )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while '"serving"' not in reports.read_text():
            assert process.poll() is None, reports.read_text()
            assert time.monotonic() < deadline, reports.read_text()
            time.sleep(0.2)
        yield Secured(tmp_path, ports, key, authority.client(), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        finally:
            process.kill()
            process.wait()


def test_keys_and_tls_hold_on_real_servers(secured: Secured) -> None:
    body = {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 4}
    assert secured.ask("main", "/v1/chat/completions", body)[0] == 401
    status, answer, headers = secured.ask("main", "/v1/chat/completions", body, secured.key)
    assert (status, headers["x-conserve-reason"]) == (200, "first_turn")
    said = [answer["choices"][0]["message"], {"role": "user", "content": "go on"}]
    body["messages"] = [*body["messages"], *said]  # type: ignore[misc]
    status, _, headers = secured.ask("main", "/v1/chat/completions", body, secured.key)
    assert (status, headers["x-conserve-reason"]) == (200, "pinned")

    for worker in ("prefill", "decode"):
        assert secured.ask(worker, "/server_info")[0] == 401
        assert secured.ask(worker, "/server_info", key=secured.key)[0] == 401
        assert secured.ask(worker, "/server_info", key=SECRETS["W_KEY"])[0] == 200
    path = "/v1/conversations/task"
    assert secured.ask("main", path, key=secured.key, method="DELETE")[0] == 200
    assert secured.ask("main", path, key=secured.key)[0] == 404
    assert secured.ask("control", "/admin/workers")[0] == 401
    assert secured.ask("control", "/admin/workers", key=SECRETS["A_KEY"])[0] == 200

    logs = "".join(log.read_text(errors="replace") for log in secured.folder.glob("logs/*"))
    lines = [file.read_text() for file in Path("/proc").glob("[0-9]*/cmdline") if readable(file)]
    assert any("map.yaml" in line for line in lines)
    for text in (logs, *lines, (secured.folder / "reports.jsonl").read_text()):
        assert "marked-" not in text
        assert secured.key not in text


def readable(file: Path) -> bool:
    try:
        return bool(file.read_text())
    except OSError:
        return False
