"""Profiles at power caps: set on a stand-in GPU that obeys them, told in watts, put back."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conserve_sglang.profiles import load_profile
from tests.energy.standin import Machine, build
from tests.profiler.fake_worker import Costs, FakeMeasuredWorker

ONE_GPU = Path(__file__).parents[2] / "tier_maps" / "one_gpu.yaml"
FAST = Costs(prefill_s=0.001, per_new_s=1e-7, per_cached_s=0, step_s=0.002, per_kv_s=0)
COMMAND = "from conserve_cli.app import main; main()"

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


async def profiled(machine: Machine, *args: str) -> "subprocess.CompletedProcess[str]":
    """`conserve-sglang profile` of a fake worker, on a machine with a stand-in GPU."""
    argv = ["profile", "--tier-map", str(ONE_GPU), "--minutes", "0.1", "--max-batch", "2", *args]
    async with FakeMeasuredWorker(costs=FAST).serve() as worker:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", COMMAND, *argv, "--attach", worker.url],
            env=machine.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


async def test_one_profile_for_each_cap_and_the_gpu_as_it_was(tmp_path: Path) -> None:
    machine = Machine(build(tmp_path), tmp_path, demand="0:290")
    out = tmp_path / "profiles" / "a"
    done = await profiled(machine, "--out", str(out), "--power-cap", "200", "--power-cap", "250")
    assert done.returncode == 0, done.stdout + done.stderr
    for cap_w in (200, 250):
        profile = load_profile(out.with_name(f"a-{cap_w}w.yaml"))
        assert profile.power_cap_w == cap_w
        assert profile.power_provenance is not None
        assert profile.power_provenance.kind == "measured"
        watts = [p.watts for p in profile.decode if p.watts is not None]
        assert watts == pytest.approx([cap_w] * len(watts), rel=0.05)
        assert watts
    values = [line.split()[2] for line in machine.writes() if "power" in line]
    assert [float(value) / 1e3 for value in values] == [200, 300, 250, 300]
    assert machine.limits_w()[0] == 300


async def test_without_permission_nothing_is_measured(tmp_path: Path) -> None:
    machine = Machine(build(tmp_path), tmp_path, root="0")
    done = await profiled(machine, "--out", str(tmp_path / "a"), "--power-cap", "200", "--json")
    assert done.returncode != 0
    assert machine.limits_w()[0] == 300
    assert "permission" in (done.stdout + done.stderr).lower()
    assert not list(tmp_path.glob("a*.yaml"))
    assert not [line for line in done.stdout.splitlines() if json.loads(line)["step"] == "point"]
