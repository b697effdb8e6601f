"""NVML, through NVIDIA's own bindings, against power that is known exactly."""

import json
from pathlib import Path

import pytest

from tests.energy.standin import Machine, uuid

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
REFUSED = """
import json
from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy import NvmlMeter
try:
    NvmlMeter(["GPU-of-another-machine"])
except MeterError as error:
    print(json.dumps(str(error)))
"""


def test_counter_is_the_integral_of_power(library: Path, tmp_path: Path) -> None:
    machine = Machine(library, tmp_path, demand="0:300", tick_ms="20")
    ((seconds, joules, origin, source),) = machine.evaluate(MEASURE)
    assert joules == pytest.approx(300 * seconds, rel=0.03)  # a tick of 20 ms at either end
    assert (origin, source) == ("measured", "nvml total-energy counter")


def test_without_a_counter_power_is_integrated_and_that_is_said(
    library: Path, tmp_path: Path
) -> None:
    plain = {"no_energy": "1", "average_ms": "0", "tick_ms": "0"}
    machine = Machine(library, tmp_path, demand="0:300", **plain)
    ((seconds, joules, origin, source),) = machine.evaluate(MEASURE)
    assert joules == pytest.approx(300 * seconds, rel=0.01)
    assert (origin, source) == ("measured", "nvml power, integrated between readings")


def test_each_gpu_is_told_apart(library: Path, tmp_path: Path) -> None:
    machine = Machine(library, tmp_path, demand="0:70;0:140;0:280", tick_ms="20")
    watts = [joules / seconds for seconds, joules, *_ in machine.evaluate(MEASURE)]
    assert watts == [pytest.approx(each, rel=0.03) for each in (70, 140, 280)]


def test_unknown_gpu_is_named_with_those_there_are(library: Path, tmp_path: Path) -> None:
    said = Machine(library, tmp_path).evaluate(REFUSED)
    assert "GPU-of-another-machine" in said
    assert uuid(1) in said


def test_command_lists_counter_period_limits_and_sets_nothing(
    library: Path, tmp_path: Path
) -> None:
    machine = Machine(library, tmp_path, demand="0:480", tick_ms="50", range_w="200,700,700")
    done = machine.command("energy", "--json", "--seconds", "0.5")
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)["devices"]
    assert device["origin"] == "measured"
    assert device["period_s"] == pytest.approx(0.05, abs=0.02)
    assert device["limits"]["most_w"] == 700.0
    assert device["used"]["joules"] == pytest.approx(480 * device["used"]["seconds"], rel=0.25)
    assert not machine.writes()


def test_machine_without_a_driver_says_so(tmp_path: Path) -> None:
    done = Machine(tmp_path, tmp_path).command("energy")  # no library there
    assert done.returncode == 1
    assert "NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr
