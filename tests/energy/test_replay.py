"""Recordings, and windows between readings."""

from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy import Device, Kind, Origin, Reading, ReplayMeter
from conserve_sglang.energy.meter import windows
from conserve_sglang.energy.replay import record
from conserve_sglang.energy.survey import may_set

GPU = Device(device_id="GPU-1", kind=Kind.GPU, name="A40")
CPU = Device(device_id="cpu-0", kind=Kind.CPU_PACKAGE, name="EPYC")


def reading(device: Device, at_s: float, joules: float) -> Reading:
    return Reading(
        device_id=device.device_id, at_s=at_s, joules=joules, watts=None,
        origin=Origin.MEASURED, source="counter",
    )  # fmt: skip


TRACK = [
    {"GPU-1": reading(GPU, 100.0, 0.0), "cpu-0": reading(CPU, 100.0, 5.0)},
    {"GPU-1": reading(GPU, 101.0, 300.0), "cpu-0": reading(CPU, 101.0, 55.0)},
]


def test_recording_is_played_back_at_its_own_pace(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    assert record(path, [GPU, CPU], TRACK) == 4
    now = [7.0]
    meter = ReplayMeter.from_file(path, lambda: now[0])
    assert meter.devices() == (GPU, CPU)
    before = meter.read()
    now[0] = 7.9
    assert meter.read() == before
    now[0] = 8.0
    used = windows(before, meter.read())
    assert (used["GPU-1"].joules, used["GPU-1"].mean_watts) == (300.0, 300.0)
    assert used["cpu-0"].joules == 50.0
    assert used["GPU-1"].origin is Origin.MEASURED
    assert meter.read()["GPU-1"].source == "recorded: counter"


def test_window_with_a_modelled_end_is_modelled() -> None:
    after = {"GPU-1": replace(TRACK[1]["GPU-1"], origin=Origin.MODELLED)}
    assert windows(TRACK[0], after)["GPU-1"].origin is Origin.MODELLED


def test_modelled_reading_is_not_recorded_as_measured(tmp_path: Path) -> None:
    modelled = {"GPU-1": replace(TRACK[0]["GPU-1"], origin=Origin.MODELLED)}
    with pytest.raises(MeterError, match="modelled"):
        record(tmp_path / "meter.csv", [GPU], [modelled])
    assert not (tmp_path / "meter.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no reading"),
        ("at_s,device_id\n1,x\n", "line 1: there is no column kind"),
        ("at_s,device_id,kind,name,joules,watts,source\nsoon,x,gpu,n,1,,s\n", "line 2"),
        ("at_s,device_id,kind,name,joules,watts,source\n1,x,toaster,n,1,,s\n", "line 2"),
        ("at_s,device_id,kind,name,joules,watts,source\n2,x,gpu,n,1,,s\n1,x,gpu,n,1,,s\n", "back"),
    ],
)
def test_bad_recording_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(text)
    with pytest.raises(MeterError, match=message):
        ReplayMeter.from_file(path, lambda: 0.0)


def test_permission_is_read_from_the_capabilities(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert may_set(status)
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    assert not may_set(status)
