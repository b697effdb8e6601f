"""Which meter is taken, and what is said where there is none."""

import json
from pathlib import Path

import pytest

from conserve_sglang.core.errors import MeterError
from conserve_sglang.energy import choose
from conserve_sglang.energy.choose import modelled_device, open_meter
from conserve_sglang.energy.meter import Meter, Origin
from conserve_sglang.energy.replay import ReplayMeter
from tests.cli.conftest import RunCli, run_cli

__all__ = ["run_cli"]

ROWS = """at_s,device_id,kind,name,joules,watts,source
0,g0,gpu,A GPU,0,50,a counter
9,g0,gpu,A GPU,450,50,a counter
"""


def test_replay_needs_its_recording(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(ROWS)
    assert isinstance(open_meter("replay", recording=str(tmp_path / "r.csv")), ReplayMeter)
    with pytest.raises(MeterError, match="needs a recording"):
        open_meter("replay")


def test_unknown_meter_is_named_with_those_there_are() -> None:
    with pytest.raises(MeterError, match=r"no meter 'watt' here; there are auto, zeus, nvml"):
        open_meter("watt")


def test_auto_takes_the_first_that_reads_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise MeterError("zeus has nothing.")

    monkeypatch.setattr(choose, "ZeusMeter", fails)
    monkeypatch.setattr(choose, "find_spec", lambda name: object())
    nvml = modelled_device("l4-qwen3-0.6b")  # any meter will do
    monkeypatch.setattr(choose, "NvmlMeter", lambda uuids: nvml)
    assert open_meter("auto") is nvml


def test_auto_says_all_that_was_tried_and_offers_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise MeterError("zeus has nothing.")

    monkeypatch.setattr(choose, "ZeusMeter", fails)
    monkeypatch.setattr(choose, "find_spec", lambda name: object())
    with pytest.raises(MeterError, match=r"zeus has nothing\..*energy\.meter: model"):
        open_meter("auto", with_gpus=False)
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with pytest.raises(MeterError, match=r"zeus, and it is not installed"):
        open_meter("auto", with_gpus=False)


def test_modelled_device_is_idle_and_says_what_it_is() -> None:
    (reading,) = modelled_device("a40-qwen3-0.6b-300w").read().values()
    assert reading.origin is Origin.MODELLED
    with pytest.raises(MeterError, match="needs a profile; there are: a100"):
        modelled_device(None)


def test_command_never_prints_a_modelled_number_without_the_word(run_cli: RunCli) -> None:
    asked = ("energy", "--meter", "model", "--profile", "l4-qwen3-0.6b", "--seconds", "0.2")
    out = run_cli(*asked).out
    assert out.count("modelled") >= 4  # the device, its counter, its power, what it used
    assert "measured" not in out


def test_command_plays_a_recording(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(ROWS)
    out = run_cli("energy", "--meter", "replay", "--recording", tmp_path / "r.csv").out
    assert "recorded: a counter" in out


def test_what_was_measured_can_be_recorded_and_played_again(
    run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "r.csv").write_text(ROWS)
    copy = tmp_path / "copy.csv"
    replay = ("energy", "--meter", "replay", "--recording")
    ran = run_cli(*replay, tmp_path / "r.csv", "--seconds", "0.3", "--record", copy)
    assert ran.code == 0
    assert copy.read_text().splitlines()[1].startswith("0.0,g0,gpu,A GPU,0.0,50.0,")
    assert run_cli(*replay, copy).code == 0


def test_modelled_numbers_are_not_recorded(run_cli: RunCli, tmp_path: Path) -> None:
    model = ("energy", "--meter", "model", "--profile", "l4-qwen3-0.6b")
    ran = run_cli(*model, "--seconds", "0.1", "--record", tmp_path / "r.csv")
    assert ran.code == 2
    assert "only what is measured is recorded" in ran.err
    assert not (tmp_path / "r.csv").exists()
    ran = run_cli(*model, "--record", tmp_path / "r.csv")
    assert ran.code == 2
    assert "--seconds" in ran.err


def test_nothing_to_measure_is_json_too(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Meter:
        raise MeterError("no meter here")

    monkeypatch.setattr("conserve_sglang.energy.choose.open_meter", none)
    ran = run_cli("energy", "--json")
    assert ran.code == 1
    document = json.loads(ran.out)
    assert (document["devices"], document["problems"]) == ([], ["no meter here"])
    assert ran.err == "error: no meter here\n"


def test_command_says_what_a_meter_needs_and_only_what_it_knows(
    run_cli: RunCli, tmp_path: Path
) -> None:
    for asked, told in {
        ("--meter", "foo"): "nvml, replay and model",
        ("--meter", "replay"): "--recording FILE",
        ("--meter", "replay", "--recording", tmp_path / "none"): "No such file",
        ("--meter", "model"): "needs a profile",
        ("--seconds", 1, "--record", tmp_path / "none" / "r.csv"): "no file can be there",
    }.items():
        ran = run_cli("energy", *asked)
        assert (ran.code, told in ran.err) == (2, True), asked
    (tmp_path / "r.csv").write_text(ROWS)
    out = run_cli("energy", "--meter", "replay", "--recording", tmp_path / "r.csv").out
    assert "nothing is known of setting one" in out
