"""NVML, through NVIDIA's own bindings, against power that is known exactly."""

import json
from pathlib import Path

import pytest

from tests.energy import fake_nvml

MEASURE = """
import json, time
from conserve_sglang.energy import NvmlMeter
from conserve_sglang.energy.meter import windows
meter = NvmlMeter()
before = meter.read()
for _ in range(12):
    time.sleep(0.1)
    meter.read()
used = windows(before, meter.read())
print(json.dumps([
    [u.seconds, u.joules, u.origin.value, meter.read()[u.device_id].source] for u in used.values()
]))
"""
COMMAND = "import sys; sys.argv[1:] = {}; from conserve_cli.app import main; main()"
REFUSED = """
import json
from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy import NvmlMeter
try:
    NvmlMeter(["GPU-of-another-machine"])
except MeterError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


def test_counter_is_the_integral_of_power(library: Path) -> None:
    ((seconds, joules, origin, source),) = fake_nvml.evaluate(
        library, MEASURE, trace="0:300", period_ms="20"
    )
    assert joules == pytest.approx(300 * seconds, rel=0.03)  # a tick of 20 ms at either end
    assert (origin, source) == ("measured", "nvml total-energy counter")


def test_without_a_counter_power_is_integrated_and_that_is_said(library: Path) -> None:
    ((seconds, joules, origin, source),) = fake_nvml.evaluate(
        library, MEASURE, trace="0:300", no_energy="1", avg_ms="0", period_ms="0"
    )
    assert joules == pytest.approx(300 * seconds, rel=0.01)
    assert (origin, source) == ("measured", "nvml power, integrated between readings")


def test_each_gpu_is_told_apart(library: Path) -> None:
    assert len(fake_nvml.evaluate(library, MEASURE, count="3", period_ms="20")) == 3


def test_unknown_gpu_is_named_with_those_there_are(library: Path) -> None:
    said = fake_nvml.evaluate(library, REFUSED, count="2")
    assert "GPU-of-another-machine" in said
    assert "GPU-00000000-0000-0000-0000-000000000001" in said


def test_command_lists_counter_period_limits_and_sets_nothing(
    library: Path, tmp_path: Path
) -> None:
    log = tmp_path / "setters"
    code = COMMAND.format(["energy", "--json", "--seconds", "0.5"])
    done = fake_nvml.run(
        library, ["-c", code], trace="0:480", period_ms="50", root="1", log=str(log)
    )
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)["devices"]
    assert device["origin"] == "measured"
    assert device["period_s"] == pytest.approx(0.05, abs=0.02)
    assert device["limits"]["most_w"] == 700.0
    assert device["used"]["joules"] == pytest.approx(480 * device["used"]["seconds"], rel=0.25)
    assert not log.exists()


def test_machine_without_a_driver_says_so(tmp_path: Path) -> None:
    done = fake_nvml.run(tmp_path, ["-c", COMMAND.format(["energy"])])
    assert done.returncode == 1
    assert "NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr
