"""Builds and runs the two programs: fake SGLang workers, and a closed loop of requests."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import ConfigError

SOURCES = Path(__file__).parent
BUILT = SOURCES.parents[1] / ".cache" / "bench-native"
_PARTS = {
    "fake_worker": ("fake_worker.c", "answers.c", "turn.c", "wire.c"),
    "load_client": ("load_client.c", "samples.c", "wire.c"),
}
PLACE = "@" * 16
"""Becomes a number of its own in every request the client sends."""
TURN_PLACE = "#" * 32
"""Becomes the "turn" of the client's last answer that had one."""


def program(name: str) -> Path:
    """The built program; built again if a source is newer. Raises ConfigError without `cc`."""
    path = BUILT / name
    newest = max(file.stat().st_mtime for file in SOURCES.glob("*.[ch]"))
    if path.exists() and path.stat().st_mtime >= newest:
        return path
    compiler = shutil.which("cc")
    if compiler is None:
        raise ConfigError("cc is not there to build bench/native with. Install gcc.")
    BUILT.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    sources = [str(SOURCES / part) for part in _PARTS[name]]
    subprocess.run([compiler, "-std=gnu11", "-O2", "-o", str(fresh), *sources], check=True)
    fresh.replace(path)
    return path


@contextmanager
def running(argv: Sequence[str], cores: set[int], log: Path | None = None) -> Iterator[int]:
    """A process on `cores`, by its pid; stopped at the end. Its output goes to `log`."""
    output = log.open("wb") if log else None
    process = started(argv, cores, stdout=output, stderr=subprocess.STDOUT if log else None)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if output:
            output.close()


def started(argv: Sequence[str], cores: set[int], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a process that may run on `cores` alone, in a scheduling group of its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(argv, start_new_session=True, **options)
    finally:
        os.sched_setaffinity(0, before)


def set_group_nice(pid: int, nice: int) -> None:
    """Weigh a process's scheduling group against all others'; below 0 needs root."""
    Path(f"/proc/{pid}/autogroup").write_text(str(nice))


@contextmanager
def fake_workers(
    prefill_ports: Sequence[int], decode_ports: Sequence[int], cores: set[int], tick_us: int
) -> Iterator[int]:
    """Fake workers on these ports, all in one process, by its pid."""
    plans = [f"prefill:{port}" for port in prefill_ports]
    plans += [f"decode:{port}" for port in decode_ports]
    argv = [str(program("fake_worker")), str(tick_us), *plans]
    process = started(argv, cores, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise ConfigError("the fake workers did not start; see above")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the client sends: `header` is one line, whose name is a new one every so many turns of
    a connection, or the same for all of them if `turns_per_name` is 0. After each answer goes the
    `report`, a path and a body, if there is one; it needs a header."""

    port: int
    connections: int
    body: Path
    seconds: float
    seed: int
    warm_up_s: float = 0.3
    path: str = "/v1/chat/completions"
    header: str | None = None
    turns_per_name: int = 1
    report: tuple[str, Path] | None = None
    group_nice: int = 0


def send_load(load: Load, cores: set[int]) -> dict[str, Any]:
    """Run the client; what it counted. Raises CalledProcessError if a connection broke."""
    argv = [str(program("load_client")), str(load.port), str(load.connections)]
    argv += [str(load.warm_up_s), str(load.seconds), str(load.seed), load.path, str(load.body)]
    if load.header:
        argv += [load.header, str(load.turns_per_name)]
        if load.report:
            argv += [load.report[0], str(load.report[1])]
    process = started(argv, cores, stdout=subprocess.PIPE)
    if load.group_nice:
        set_group_nice(process.pid, load.group_nice)
    output, _ = process.communicate(timeout=load.warm_up_s + load.seconds + 30)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    counted: dict[str, Any] = json.loads(output)
    return counted
