import json
from pathlib import Path

import yaml

from tests.cli.conftest import RunCli


def test_both_files_are_written_and_named(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("dashboards", "--out", tmp_path / "new")
    assert ran.code == 0
    paths = [Path(line.split("  ")[0]) for line in ran.out.splitlines()]
    assert json.loads(paths[0].read_text())["title"] == "conserve-sglang"
    assert yaml.safe_load(paths[1].read_text())["groups"][0]["rules"]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_input(
    run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ran = run_cli("dashboards", "--out", tmp_path / "file" / "below")
    assert ran.code == 2
    assert "--out" in ran.err
