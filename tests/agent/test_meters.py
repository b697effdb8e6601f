"""Whose device is whose: GPUs as the driver counts them, and no GPU's joules for the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.energy import standin

HEAD = "schema_version: 1\nmodel: {path: some/model}\ntiers:\n"
PREFILL = "role: prefill, base_port: 30100, bootstrap_base_port: 30150"
DECODE = "role: decode, base_port: 30200"
ASK = """
import json, sys
from pathlib import Path
from conserve_sglang.agent.__main__ import shown_as_the_driver_counts
from conserve_sglang.agent.here import part_of
from conserve_sglang.agent.meters import meter_of
from conserve_sglang.core.errors import MeterError, TierMapError
from conserve_sglang.tiermap.load import parse_tier_map
FOLDER = Path({folder!r})
if {is_agent}:
    shown_as_the_driver_counts()
try:
    tier_map = parse_tier_map({text!r}, source="m", folder=FOLDER)
    found = meter_of(part_of(tier_map, "127.0.0.1", FOLDER))
except (MeterError, TierMapError) as error:
    print(json.dumps({{"error": str(error)}}))
else:
    print(json.dumps({{
        "meter": type(found.meter).__name__,
        "users": dict(found.users),
        "read": list(found.read()),
        "open": [each.device_id for each in found.meter.devices()],
        "unmeasured": list(found.unmeasured),
    }}))
"""
RECORDING = """at_s,device_id,kind,name,joules,watts,source
0,g0,gpu,A GPU,0,50,a counter
0,g1,gpu,A GPU,0,50,a counter
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin.build(tmp_path_factory.mktemp("nvml"))


def asked(
    library: Path,
    folder: Path,
    prefill: str,
    decode: str,
    energy: str,
    *,
    shown: str = "2,3",
    is_agent: bool = True,
) -> Any:
    """What a machine of four GPUs tells, asked from a shell that shows CUDA two of them."""
    tiers = f"  - {{name: p, {PREFILL}, {prefill}}}\n  - {{name: d, {DECODE}, {decode}}}\n"
    machine = standin.Machine(library, folder, demand="0:70;0:70;0:70;0:70")
    text = f"{HEAD}{tiers}energy: {{{energy}}}\n"
    code = ASK.format(folder=str(folder), text=text, is_agent=is_agent)
    child = machine.start("-c", code, env={**machine.env, "CUDA_VISIBLE_DEVICES": shown})
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("meter", ["auto", "zeus", "nvml"])
def test_gpus_are_the_drivers_whatever_cuda_is_shown(
    library: Path, tmp_path: Path, meter: str
) -> None:
    if meter == "zeus":
        pytest.importorskip("zeus")
    tiers = ("gpu: A40, gpu_ids: [3]", "gpu: A40, gpu_ids: [0]")
    told = asked(library, tmp_path, *tiers, f"meter: {meter}")
    assert told["users"] == {standin.uuid(3): ["p-0"], standin.uuid(0): ["d-0"]}
    assert told["open"] == [standin.uuid(0), standin.uuid(3)]  # and none that is not named


def test_elsewhere_zeus_refuses_what_it_is_not_shown(library: Path, tmp_path: Path) -> None:
    pytest.importorskip("zeus")
    tiers = ("gpu: A40, gpu_ids: [0]", "gpu: A40, gpu_ids: [1]")
    told = asked(library, tmp_path, *tiers, "meter: zeus", is_agent=False)
    assert "CUDA_VISIBLE_DEVICES=2,3: unset that" in told["error"]
    told = asked(library, tmp_path, *tiers, "meter: auto", is_agent=False)
    assert (told["meter"], len(told["users"])) == ("NvmlMeter", 2)


def test_gpu_that_is_not_there_is_named(library: Path, tmp_path: Path) -> None:
    told = asked(library, tmp_path, "gpu: A40, gpu_ids: [0]", "gpu: A40, gpu_ids: [4]", "")
    assert "There is no GPU 4 on this machine: NVML counts 4, from 0." in told["error"]


def test_worker_on_the_cpu_is_not_measured_by_gpus(library: Path, tmp_path: Path) -> None:
    told = asked(library, tmp_path, "gpu: A40, gpu_ids: [1]", "gpu: cpu", "meter: nvml")
    assert told["users"] == {standin.uuid(1): ["p-0"]}
    assert told["unmeasured"] == ["d-0"]
    told = asked(library, tmp_path, "gpu: cpu", "gpu: cpu", "meter: nvml")
    assert "nvml reads GPUs, and all tiers run on the CPU" in told["error"]


def test_recordings_too_are_read_for_the_gpus_that_are_named(library: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(RECORDING)
    energy = "meter: replay, recording: r.csv"
    told = asked(library, tmp_path, "gpu: A40, gpu_ids: [1]", "gpu: cpu", energy)
    assert (told["users"], told["read"]) == ({"g1": ["p-0"]}, ["g1"])
    assert told["unmeasured"] == ["d-0"]
