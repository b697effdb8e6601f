"""Which meter is read: a stand-in GPU's by its index, a model of the CPU, or none and why."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conserve_sglang.core.errors import MeterError
from conserve_sglang.profiler.power_source import power_source
from conserve_sglang.tiermap import load_tier_map
from tests.energy.standin import Machine, build

MAPS = Path(__file__).parents[2] / "tier_maps"
PROGRAM = """
import json, time
from pathlib import Path
from conserve_sglang.profiler.power_source import power_source
from conserve_sglang.tiermap import load_tier_map
tier_map = load_tier_map(Path(MAP))
source = power_source(CHOICE, tier_map.tiers[0], tier_map.workers, ())
with source.track.running() as track:
    begin_s = time.monotonic()
    time.sleep(1.2)
    watts = track.watts(begin_s, begin_s + 1.2)
print(json.dumps({"watts": watts, "facts": dict(source.gpu_facts), "origin": track.origin.value}))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in GPU needs a C compiler")
@pytest.mark.parametrize(("tiers", "choice"), [("one_gpu", "auto"), ("cpu_local", "nvml")])
def test_a_gpu_of_known_power(tmp_path: Path, tiers: str, choice: str) -> None:
    """GPU 0 of the tier map, or the first one where a CPU's tier is to be read so."""
    machine = Machine(build(tmp_path), tmp_path, demand="0:150;0:70")
    program = f"MAP = {str(MAPS / tiers)!r} + '.yaml'; CHOICE = {choice!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=machine.env, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["watts"] == pytest.approx(150, rel=0.1)
    assert told["origin"] == "measured"
    assert float(told["facts"]["power_limit_w"]) > 0


def test_no_meter_was_asked_for() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    source = power_source("none", tier_map.tiers[0], tier_map.workers, ())
    assert (source.track, source.why) == (None, "no meter was asked for")


def test_a_gpu_without_a_meter_is_timed_all_the_same() -> None:
    tier_map = load_tier_map(MAPS / "one_gpu.yaml")
    source = power_source("auto", tier_map.tiers[0], tier_map.workers, ())
    assert source.track is None
    assert source.why


def test_a_meter_asked_for_by_name_must_be_there() -> None:
    tier_map = load_tier_map(MAPS / "one_gpu.yaml")
    with pytest.raises(MeterError):
        power_source("nvml", tier_map.tiers[0], tier_map.workers, ())


def test_whose_cpu_time_counts_must_be_known() -> None:
    tier_map = load_tier_map(MAPS / "cpu_local.yaml")
    with pytest.raises(MeterError, match="started here"):
        power_source("cpu-model", tier_map.tiers[0], tier_map.workers, ())
