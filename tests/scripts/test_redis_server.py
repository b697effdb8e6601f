"""What set-up says and does about the Redis server that some tests start.

The commands the script calls are stand-ins, and alone on its PATH, so nothing is installed.
"""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "redis_server.sh"


def run(folder: Path, *, user_id: int, has_server: bool) -> "subprocess.CompletedProcess[str]":
    commands = {"id": f"echo {user_id}", "apt-get": f'echo "$@" >> {folder}/installed'}
    if has_server:
        commands["redis-server"] = "true"
    for name, line in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["/bin/bash", str(SCRIPT)],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_root_gets_it_installed(tmp_path: Path) -> None:
    ran = run(tmp_path, user_id=0, has_server=False)
    assert (ran.returncode, ran.stdout) == (0, "setup: installing redis-server\n")
    assert (tmp_path / "installed").read_text().split()[-1] == "redis-server"


def test_an_ordinary_user_is_told_what_is_skipped_and_what_root_has_to_do(tmp_path: Path) -> None:
    ran = run(tmp_path, user_id=1000, has_server=False)
    assert ran.returncode == 0
    assert "tests that need it are skipped" in ran.stderr
    assert "as root: apt-get install redis-server" in ran.stderr
    assert not (tmp_path / "installed").exists()


@pytest.mark.parametrize("user_id", [0, 1000])
def test_nothing_is_said_where_it_is(tmp_path: Path, user_id: int) -> None:
    ran = run(tmp_path, user_id=user_id, has_server=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not (tmp_path / "installed").exists()
