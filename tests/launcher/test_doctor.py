import json
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.launcher import doctor
from conserve_sglang.launcher.doctor import Check, Severity
from conserve_sglang.plugin.manifest import parse_manifest


def named(name: str, checks: list[Check]) -> Check:
    return next(check for check in checks if check.name == name)


def other_sglang(folder: Path, version: str) -> Path:
    (folder / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    return folder


def test_an_unknown_sglang_is_told_with_what_to_do(tmp_path: Path) -> None:
    checks = doctor.run_checks(other_sglang(tmp_path, "0.5.99"))
    assert not named("SGLang", checks).is_fine
    assert "--new-manifest" in (named("Manifest", checks).todo or "")


def test_a_missing_sglang_is_installed_without_its_cuda_requirements(tmp_path: Path) -> None:
    todo = named("SGLang", doctor.run_checks(tmp_path)).todo or ""
    assert "pip install --no-deps sglang==0.5.23" in todo
    assert "make setup" in todo
    assert "conserve-sglang[gpu]" in todo


def test_a_changed_sglang_is_told_by_function(tmp_path: Path) -> None:
    found = named("Manifest", doctor.run_checks(other_sglang(tmp_path, "0.5.23"))).found
    assert "Scheduler.abort_request (gone)" in found


def test_every_check_that_is_not_met_says_what_to_do(tmp_path: Path) -> None:
    for check in doctor.run_checks(other_sglang(tmp_path, "0.5.99")):
        assert check.is_met == (check.todo is None)


def test_a_warning_is_fine() -> None:
    check = Check(name="x", is_met=False, severity=Severity.WARNING, found="", todo="do")
    assert check.is_fine


def test_every_library_of_the_transfer_engine_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "mooncake" or None)
    monkeypatch.setattr(doctor, "_can_load", lambda _: False)
    check = doctor._check_transfer_engine()
    assert not check.is_fine
    assert check.todo == "apt-get install libcurl4 libibverbs1 libnuma1"


def test_gpus_are_listed_with_their_power_limits() -> None:
    checks = doctor._check_gpus(lambda argv: "0, NVIDIA A40, 300 W, 100 W, 300 W\n")
    assert [check.name for check in checks] == ["GPUs", "Power caps"]
    assert "NVIDIA A40" in checks[0].found


def test_a_machine_without_gpus_is_fine() -> None:
    assert all(check.is_fine for check in doctor._check_gpus(lambda argv: None))


def test_a_draft_says_what_is_gone_and_is_a_manifest(tmp_path: Path) -> None:
    text = doctor.draft_manifest(other_sglang(tmp_path, "0.5.99"))
    assert json.loads(text)["draft"]["based_on"] == "0.5.23"
    assert any("abort_request" in line for line in json.loads(text)["draft"]["gone"])
    assert parse_manifest(text).sglang == "0.5.99"


def test_no_sglang_to_draft_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sglang-root"):
        doctor.draft_manifest(tmp_path)
