"""What set-up says and does about shared libraries that only root can install.

The commands the script calls are stand-ins that come first on its PATH, so nothing is installed.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "system_libraries.sh"
LIBRARIES = ("libcurl.so.4", "libibverbs.so.1", "libnuma.so.1")


@dataclass(frozen=True)
class Machine:
    """Stand-ins for the commands of one machine."""

    bin: Path

    def has(self, *, user_id: int, libraries: tuple[str, ...]) -> None:
        known = "\\n".join(f"\\t{name} (libc6) => /lib/{name}" for name in libraries)
        self._write("id", f"echo {user_id}")
        self._write("ldconfig", f"printf '{known}\\n'")
        self._write("apt-get", f'echo "$@" >> {self.bin}/installed')

    def run(self) -> "subprocess.CompletedProcess[str]":
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            [str(SCRIPT)],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def installed(self) -> list[str]:
        path = self.bin / "installed"
        return path.read_text().splitlines() if path.exists() else []

    def _write(self, name: str, line: str) -> None:
        command = self.bin / name
        command.write_text(f"#!/bin/sh\n{line}\n")
        command.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_ordinary_user_is_told_what_root_has_to_install(machine: Machine) -> None:
    machine.has(user_id=1000, libraries=("libcurl.so.4",))
    ran = machine.run()
    assert ran.returncode == 1
    assert "setup: system libraries are missing; as root: apt-get install " in ran.stderr
    assert {"libibverbs1", "libnuma1"} == set(ran.stderr.split("install ")[1].split())
    assert machine.installed() == []


def test_an_ordinary_user_who_lacks_nothing_is_not_stopped(machine: Machine) -> None:
    machine.has(user_id=1000, libraries=LIBRARIES)
    ran = machine.run()
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert machine.installed() == []


def test_root_gets_only_what_is_missing(machine: Machine) -> None:
    machine.has(user_id=0, libraries=LIBRARIES[1:])
    ran = machine.run()
    assert (ran.returncode, ran.stdout) == (0, "setup: installing libcurl4\n")
    assert machine.installed()[-1].split()[-1] == "libcurl4"


def test_names_that_only_begin_alike_do_not_count(machine: Machine) -> None:
    machine.has(user_id=1000, libraries=("libcurl.so.4.8", *LIBRARIES[1:]))
    assert "apt-get install libcurl4" in machine.run().stderr
