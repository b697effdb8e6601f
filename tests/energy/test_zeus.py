"""zeus over NVML's stand-in and over a powercap tree of ours: counters that are known exactly."""

import json
from pathlib import Path

import pytest

from tests.energy.standin import Machine, uuid

MEASURE = """
import json, sys, time
from conserve_sglang.energy import ZeusMeter
from conserve_sglang.energy.meter import windows
meter = ZeusMeter(with_cpus=False)
before = meter.read()
time.sleep(1.2)
after = meter.read()
used = windows(before, after)
print(json.dumps({
    "used": [[u.device_id, u.seconds, u.joules, u.origin.value] for u in used.values()],
    "watts": [r.watts for r in after.values()],
    "source": [r.source for r in after.values()],
    "has_torch": "torch" in sys.modules,
}))
"""
NOTHING = """
import json
from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy import ZeusMeter
try:
    ZeusMeter()
except MeterError as error:
    print(json.dumps(str(error)))
"""
RAPL = """
import json, sys, time
from pathlib import Path

if __name__ == "__main__":
    root = Path(sys.argv[1])
    from zeus.device.cpu import rapl
    rapl.RAPL_DIR = str(root)
    from conserve_sglang.energy import ZeusMeter
    meter = ZeusMeter(with_gpus=False)
    package, dram = (root / "intel-rapl:0" / p / "energy_uj" for p in ("", "intel-rapl:0:0"))
    meter.read()
    package.write_text("60000000")
    dram.write_text("7000000")
    time.sleep(0.2)
    first = meter.read()
    package.write_text("1000000")
    second = meter.read()
    print(json.dumps([
        [d.device_id, d.kind.value, first[d.device_id].joules, second[d.device_id].joules,
         first[d.device_id].watts, first[d.device_id].origin.value] for d in meter.devices()
    ]))
"""

pytest.importorskip("zeus")


def powercap(root: Path) -> Path:
    """One package with its memory, as the kernel shows them."""
    for path, name, most_uj in (
        (root / "intel-rapl:0", "package-0", 100_000_000),
        (root / "intel-rapl:0" / "intel-rapl:0:0", "dram", 100_000_000),
    ):
        path.mkdir(parents=True)
        (path / "name").write_text(name)
        (path / "energy_uj").write_text("2000000")
        (path / "max_energy_range_uj").write_text(str(most_uj))
    return root


def test_gpu_counter_is_the_integral_of_power_without_torch(library: Path, tmp_path: Path) -> None:
    told = Machine(library, tmp_path, demand="0:300", tick_ms="20").evaluate(MEASURE)
    ((device_id, seconds, joules, origin),) = told["used"]
    assert device_id == uuid(0)
    assert joules == pytest.approx(300 * seconds, rel=0.04)  # a tick of 20 ms at either end
    assert told["watts"] == [300.0]
    assert (origin, told["source"]) == ("measured", ["zeus, nvml total-energy counter"])
    assert not told["has_torch"]


def test_machine_that_measures_nothing_is_an_error_and_not_0_joules(tmp_path: Path) -> None:
    said = Machine(tmp_path, tmp_path).evaluate(NOTHING)  # no library there
    assert "zeus finds no GPU" in said
    assert "RAPL" in said


def test_cpu_package_and_memory_are_read_and_a_wrapped_counter_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "rapl.py"
    script.write_text(RAPL)
    done = Machine(tmp_path, tmp_path).run(str(script), str(powercap(tmp_path / "rapl")))
    assert done.returncode == 0, done.stderr
    package, dram = json.loads(done.stdout)
    assert package[:2] == ["cpu-package-0", "cpu_package"]
    assert dram[:2] == ["dram-0", "dram"]
    assert package[2:4] == [pytest.approx(58.0), pytest.approx(99.0)]  # 2 to 60, then over 100 to 1
    assert dram[2:4] == [pytest.approx(5.0), pytest.approx(5.0)]
    assert 0 < package[4] <= 58.0 / 0.2
    assert package[5] == "measured"


def test_command_lists_gpus_through_zeus_with_nvmls_limits(library: Path, tmp_path: Path) -> None:
    machine = Machine(library, tmp_path, demand="0:480", tick_ms="50", range_w="200,700,700")
    done = machine.command("energy", "--meter", "zeus", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (device,) = told["devices"]
    assert device["source"] == "zeus, nvml total-energy counter"
    assert device["period_s"] == pytest.approx(0.05, abs=0.02)
    assert device["limits"]["most_w"] == 700.0
    assert "RAPL" in told["problems"][0]
