"""conserve-sglang doctor."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import RunCli

ANY_CODE = {0, 1}


def test_every_check_is_a_line_and_the_exit_code_says_whether_all_are_fine(
    run_cli: RunCli,
) -> None:
    ran = run_cli("doctor")
    marks = {line.split()[0] for line in ran.out.splitlines() if not line.startswith(" ")}
    assert marks <= {"ok", "note", "FAIL"}
    assert ran.code == (1 if "FAIL" in marks else 0)


def test_as_json_each_failure_has_something_to_do(run_cli: RunCli) -> None:
    ran = run_cli("doctor", "--json")
    checks = json.loads(ran.out)
    assert ran.code in ANY_CODE
    assert {"Python", "SGLang", "Manifest"} <= {check["name"] for check in checks}
    assert all(check["todo"] for check in checks if not check["is_fine"])


def test_a_folder_without_sglang_fails_the_check(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("doctor", "--sglang-root", tmp_path)
    assert ran.code == 1
    assert "FAIL SGLang" in ran.out


def test_a_manifest_of_nothing_is_the_users_to_mend(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("doctor", "--new-manifest", "--sglang-root", tmp_path)
    assert ran.code == 2
    assert "--sglang-root" in ran.err


def test_a_manifest_is_drafted_from_a_package_folder(run_cli: RunCli) -> None:
    if find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    ran = run_cli("doctor", "--new-manifest")
    assert ran.code == 0
    assert json.loads(ran.out)["draft"]["gone"] == []
