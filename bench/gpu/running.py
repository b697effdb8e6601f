"""Runs commands with logs and limits, and tells what a machine is. Only the standard library."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
COMMAND = "from conserve_cli.app import main; main()"
COUNTERS = (
    "conserve_router_kv_transfers_total",
    "conserve_router_kv_transferred_tokens_total",
    "conserve_router_kv_misses_total",
)
_TAIL_LINES = 15
_STOP_S = 45.0


class Failed(Exception):
    """A stage could not do its work; the message has the end of its log."""


class Machine:
    """Where things run: logs go to `out`, and everything ends by `deadline_s` (monotonic)."""

    def __init__(self, out: Path, state: Path, deadline_s: float) -> None:
        self._out, self._state, self._deadline_s = out, state, deadline_s
        paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env: dict[str, str] = {"PYTHONPATH": os.pathsep.join(paths)}

    @property
    def left_s(self) -> float:
        """Seconds left of this call."""
        return self._deadline_s - time.monotonic()

    def run_command(self, log: str, argv: Sequence[str]) -> None:
        """`conserve-sglang ARGV` to its end. Raises `Failed`."""
        self._run(log, [sys.executable, "-c", COMMAND, *argv])

    def run_module(self, log: str, module: str, argv: Sequence[str]) -> None:
        """`python -m MODULE ARGV` to its end. Raises `Failed`."""
        self._run(log, [sys.executable, "-m", module, *argv])

    @contextlib.contextmanager
    def running(
        self, log: str, argv: Sequence[str], *, health: int, limit_s: float
    ) -> Iterator[None]:
        """`conserve-sglang ARGV` inside the block, once the router on port `health` has all its
        workers. Raises `Failed` if that takes longer, or it ends before."""
        process = self._start(log, [sys.executable, "-c", COMMAND, *argv])
        try:
            until_s = time.monotonic() + limit_s
            while not _is_serving(health):
                if process.poll() is not None:
                    raise Failed(
                        f"{argv[0]} ended with code {process.returncode}: {self.tail(log)}"
                    )
                if time.monotonic() > until_s:
                    raise Failed(f"{argv[0]} did not serve in {limit_s:.0f} s: {self.tail(log)}")
                time.sleep(0.5)
            yield
        finally:
            _end(process)

    def first_that_works(
        self, choices: Sequence[tuple[str, ...]], work: Callable[[Any], None]
    ) -> list[str]:
        """Do it with the first choice of backends that it works with. Raises `Failed`."""
        said = []
        for number, chosen in enumerate(choices):
            try:
                work(chosen)
                return list(chosen)
            except Failed as error:
                said.append(f"with {' and '.join(chosen)}: {error}")
                is_last = number == len(choices) - 1
                if is_last or self.left_s < 120:
                    break
                print(
                    f"  {said[-1][-1500:]}\n  trying {' and '.join(choices[number + 1])}",
                    flush=True,
                )
        raise Failed("\n".join(said))

    def post(self, port: int, path: str) -> None:
        """POST without a body. Raises `Failed`."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30):
                pass
        except OSError as error:
            raise Failed(f"POST {path} on port {port}: {error}") from error

    def counters(self, control_port: int) -> dict[str, float]:
        """The router's counters of KV moved and missed."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{control_port}/metrics", timeout=10
            ) as told:
                lines = told.read().decode().splitlines()
        except OSError as error:
            raise Failed(f"GET /metrics on port {control_port}: {error}") from error
        found = dict.fromkeys(COUNTERS, 0.0)
        for line in lines:
            name, _, value = line.partition(" ")
            if name in found:
                found[name] = float(value)
        return found

    def tail(self, log: str) -> str:
        """The end of a log."""
        lines = (self._out / f"{log}.log").read_text(errors="replace").splitlines()
        return "\n".join(["the end of its log:", *lines[-_TAIL_LINES:]])

    def facts(self, options: Any) -> dict[str, Any]:
        """The machine, and the GPU if there is one."""
        return {**machine_facts(), **({} if options.cpu else gpu_facts(self.env))}

    def _run(self, log: str, argv: Sequence[str]) -> None:
        if self.left_s < 10:
            raise Failed("no time left in this call; call again")
        process = self._start(log, argv)
        try:
            code = process.wait(self.left_s - 5.0)
        except subprocess.TimeoutExpired:
            raise Failed(
                f"it was not done when this call's time was up: {self.tail(log)}"
            ) from None
        finally:
            _end(process)
        if code:
            raise Failed(f"exit code {code}: {self.tail(log)}")

    def _start(self, log: str, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        with (self._out / f"{log}.log").open("ab") as file:
            file.write(f"--- {' '.join(argv)}\n".encode())
            file.flush()
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                cwd=self._state,
                start_new_session=True,
            )


def machine_facts() -> dict[str, Any]:
    """CPU, memory, Python, revision and date."""
    cpu = [line for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    memory = [line for line in _text("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": cpu[0].split(":", 1)[1].strip() if cpu else "unknown",
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[0].split()[1]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "revision": revision.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def gpu_facts(env: dict[str, str]) -> dict[str, str]:
    """What nvidia-smi tells of GPU 0: name, driver, limits, clocks, temperature."""
    fields = ("name", "driver_version", "power.limit", "power.default_limit", "power.max_limit",
              "clocks.max.sm", "clocks.max.mem", "memory.total", "persistence_mode",
              "temperature.gpu")  # fmt: skip
    try:
        told = subprocess.run(
            ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True, text=True, env={**os.environ, **env}, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"gpu": f"nvidia-smi: {error}"}
    values = [value.strip() for value in told.stdout.strip().split(",")]
    if told.returncode or len(values) != len(fields):
        return {"gpu": f"nvidia-smi: {(told.stdout + told.stderr).strip()[:300]}"}
    return dict(zip(fields, values, strict=True))


def _is_serving(port: int) -> bool:
    """Whether a router answers and says that all of its workers are up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            workers: dict[str, Any] = json.loads(answer.read())["workers"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(workers) and all(worker["state"] == "up" for worker in workers.values())


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask its session to end, then make it: everything in it was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
