"""What OPERATING.md tells to copy works: its files are right, and its requests are answered."""

import asyncio
import re
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from conserve_sglang.core.tier import Overload, RouterSettings
from conserve_sglang.telemetry.assets import write_all
from conserve_sglang.tiermap import parse_tier_map
from tests.fakes.certificates import Authority
from tests.fakes.router_process import a_router_process
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

TEXT = (Path(__file__).parents[2] / "OPERATING.md").read_text()
MAP, SCRAPE, REPLICAS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
(UNIT,) = re.findall(r"```ini\n(.*?)```", TEXT, re.DOTALL)
CURLS = [
    line.split("  #")[0].strip() for line in re.findall(r"^ {4}(curl .*)$", TEXT, re.MULTILINE)
]
COMMAND = Path(sys.executable).parent / "conserve-sglang"


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def test_the_tier_map_is_right_alone_and_with_replicas(tmp_path: Path) -> None:
    alone = yaml.safe_load(MAP)
    shared = {**alone, "router": {**alone["router"], **yaml.safe_load(REPLICAS)["router"]}}
    for document in (alone, shared):
        tier_map = parse_tier_map(yaml.safe_dump(document), source="fleet.yaml", folder=tmp_path)
        assert [worker.worker_id for worker in tier_map.workers][1] == "decode-0"
        assert tier_map.router.admin_key_env == "CONSERVE_ADMIN_KEY"


def test_the_unit_leaves_the_router_its_time_and_its_descriptors() -> None:
    assert float(setting("TimeoutStopSec")) > RouterSettings().drain_s + 20
    assert int(setting("LimitNOFILE")) > 3 * Overload().max_connections
    assert "route --tier-map /etc/conserve-sglang/fleet.yaml" in setting("ExecStart")
    words = setting("ExecStart").split()[1:]
    help_text = subprocess.run(
        [str(COMMAND), "route", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(word in help_text for word in words if word.startswith("--"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "conserve-sglang.service"
    program = setting("ExecStart").split()[0]
    unit.write_text(UNIT.replace(program, str(COMMAND)))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_prometheus_is_told_of_the_rules_that_are_written(tmp_path: Path) -> None:
    document: dict[str, Any] = yaml.safe_load(SCRAPE)
    names = [path.name for path, _ in write_all(tmp_path)]
    assert document["rule_files"] == [names[1]]
    assert all(f"`{name}`" in TEXT for name in names)
    (job,) = document["scrape_configs"]
    assert "metrics_path" not in job  # /metrics, as Prometheus has it by itself


async def test_every_request_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_ADMIN_KEY", "hush")
    authority, rendezvous = Authority(tmp_path), Rendezvous()
    tls = authority.issue()
    workers = {mode: FakeWorker(mode, rendezvous) for mode in ("prefill", "decode")}
    (tmp_path / "admin.header").write_text("Authorization: Bearer hush\n")
    async with AsyncExitStack() as stack:
        for worker in workers.values():
            await stack.enter_async_context(worker.serve())
        router = await stack.enter_async_context(
            a_router_process(
                tmp_path,
                workers,
                client_tls=authority.client(),
                admin_key_env="CONSERVE_ADMIN_KEY",
                tls={"cert_file": tls.cert_file, "key_file": tls.key_file},
            )
        )
        assert len(CURLS) == 4
        for line in CURLS:
            words = line.replace("ROUTER:30001", f"127.0.0.1:{router.control_port}")
            words = words.replace("ROUTER:30000", f"127.0.0.1:{router.port}")
            asking = await asyncio.create_subprocess_shell(
                f"{words} --silent --fail", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
            )
            told, _ = await asking.communicate()
            assert asking.returncode == 0, line
            assert b"decode-0" in told or b"ready" in told
