"""Real SGLang servers on this machine's CPU, started together and taken down together.

By hand, to look at one: python -m tests.sglang.cluster
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.tiny_model import write_model
from conserve_sglang.launcher import keeper

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "tiny-qwen3"
MODEL_NAME = "tiny-qwen3"
LOG_DIR = ROOT / "out" / "sglang"
KEEPER = Path(keeper.__file__)

_LIFELINE = os.pipe()

START_DEADLINE_S = 300.0
STOP_GRACE_S = 3.0
PROBE_TIMEOUT_S = 45.0
LOG_TAIL_LINES = 30
STACK_LINES = 150
CHUNKED_PREFILL_SIZE = 512
MAX_TOTAL_TOKENS = 65536

PREFILL, DECODE, REFERENCE = "prefill", "decode", "reference"

COMMON_FLAGS = (
    *("--model-path", str(MODEL), "--served-model-name", MODEL_NAME),
    *("--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"),
    *("--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--chunked-prefill-size", str(CHUNKED_PREFILL_SIZE)),
    *("--max-total-tokens", str(MAX_TOTAL_TOKENS), "--mem-fraction-static", "0.8"),
    *("--schedule-policy", "fcfs", "--tool-call-parser", "qwen25"),
    # Without the sleep an idle scheduler keeps a core busy.
    *("--enable-cache-report", "--skip-server-warmup", "--sleep-on-idle"),
)
_TRANSFER = ("--disaggregation-transfer-backend", "mooncake")
ROLE_FLAGS: Mapping[str, Sequence[str]] = {
    REFERENCE: (),
    PREFILL: ("--disaggregation-mode", "prefill", *_TRANSFER),
    DECODE: (
        *("--disaggregation-mode", "decode", *_TRANSFER),
        *("--disaggregation-decode-enable-radix-cache", "--enable-session-radix-cache"),
    ),
}
COMMON_ENV = {
    "CONSERVE_ENABLED": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "MC_FORCE_TCP": "1",
    "MOONCAKE_PROTOCOL": "tcp",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    # A KV transfer that never comes is told within a minute instead of five.
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "60",
}
ROLE_ENV: Mapping[str, Mapping[str, str]] = {
    REFERENCE: {},
    PREFILL: {"CONSERVE_COUNT_TRANSFERS": "1", "CONSERVE_CONTINUE": "1"},
    # 0.5.17 keeps sessions resident only in the unified tree, which 0.5.23 always has.
    DECODE: {"CONSERVE_LOCAL_PREFILL": "1", "SGLANG_ENABLE_UNIFIED_RADIX_TREE": "1"},
}


class ServerFailed(RuntimeError):
    """A server did not come up; the message carries the end of its log."""


@dataclass(slots=True, kw_only=True)
class Server:
    """One SGLang server: what it was started with, and its process while it runs."""

    name: str
    role: str
    port: int
    bootstrap_port: int | None
    log_path: Path
    transfer_log: Path
    extra_flags: tuple[str, ...] = ()
    extra_env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def phase_log(self) -> Path:
        """Where its scheduler logs its batches: as launch has it, by the router's name for it."""
        return self.log_path.parent / f"{self.name}-0.phases"

    def argv(self) -> list[str]:
        """Its command line."""
        argv = [sys.executable, "-m", "sglang.launch_server", *COMMON_FLAGS]
        argv += ["--port", str(self.port), *ROLE_FLAGS[self.role]]
        if self.bootstrap_port is not None:
            argv += ["--disaggregation-bootstrap-port", str(self.bootstrap_port)]
        return [*argv, *self.extra_flags]

    def environ(self) -> dict[str, str]:
        """Its environment."""
        log = {"CONSERVE_TRANSFER_LOG": str(self.transfer_log)}
        if self.role != REFERENCE:
            log["CONSERVE_PHASE_LOG"] = str(self.phase_log)
        return {**os.environ, **COMMON_ENV, **ROLE_ENV[self.role], **log, **self.extra_env}

    def start(self) -> None:
        """Start the process, in a group of its own, and return at once."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = _spawn(self.argv(), self.environ(), log)

    def is_healthy(self) -> bool:
        """Whether it answers; raises if its process has ended."""
        if self.process is None or self.process.poll() is not None:
            raise ServerFailed(f"{self.name} ended while starting\n{self.log_tail()}")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, deadline_at_s: float) -> None:
        """Wait until it answers, or say with the end of its log why it does not."""
        while not self.is_healthy():
            if time.monotonic() > deadline_at_s:
                raise ServerFailed(f"{self.name} is not up in time\n{self.log_tail()}")
            time.sleep(0.3)

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group, if there is one."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill the server and all of its processes, as a crash would."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            _wait_for_group(self.process.pid)
            self.process = None

    def flush(self) -> None:
        """Empty its KV cache, if it is there; it refuses that while it has requests to serve."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/flush_cache", b"", PROBE_TIMEOUT_S).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                time.sleep(0.1)
            except OSError:
                return

    def answers(self, asked: dict[str, Any]) -> bool:
        """Whether it answers one native request with 200, in time."""
        request = urllib.request.Request(
            f"{self.url}/generate", json.dumps(asked).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log_tail(self, num_lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of its log, under the log's name."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-num_lines:]
        return "\n".join([f"--- the end of {self.log_path}", *lines])


class Cluster:
    """One prefiller `p0`, two decoders `d0` and `d1`, and a stock server `ref` to compare with."""

    def __init__(self, log_dir: Path = LOG_DIR) -> None:
        self._log_dir = log_dir
        self.servers: dict[str, Server] = {}

    def start(self) -> None:
        """Start the four together and wait until all of them answer."""
        if not (MODEL / "config.json").exists():
            write_model(MODEL)
        roles = {"p0": PREFILL, "d0": DECODE, "d1": DECODE, "ref": REFERENCE}
        for name, role in roles.items():
            self.add(name, role, is_awaited=False)
        self.wait_ready()

    def add(
        self,
        name: str,
        role: str,
        *,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        is_awaited: bool = True,
    ) -> Server:
        """Start one more server, with flags and environment of its own."""
        taken = {port for s in self.servers.values() for port in (s.port, s.bootstrap_port)}
        server = Server(
            name=name,
            role=role,
            port=free_port(taken),
            bootstrap_port=free_port(taken) if role == PREFILL else None,
            log_path=self._log_dir / f"{name}.log",
            transfer_log=self._log_dir / f"{name}.transfers.jsonl",
            extra_flags=tuple(flags),
            extra_env=dict(env or {}),
        )
        server.log_path.unlink(missing_ok=True)
        server.transfer_log.unlink(missing_ok=True)
        self.servers[name] = server
        server.start()
        if is_awaited:
            self.wait_ready(name)
        return server

    def remove(self, name: str) -> None:
        """Take one server down for good."""
        self.servers.pop(name).kill()

    def wait_ready(self, *names: str) -> None:
        """Wait until the named servers answer; all of them if none is named."""
        deadline = time.monotonic() + START_DEADLINE_S
        for name in names or tuple(self.servers):
            self.servers[name].wait_ready(deadline)

    def kill(self, name: str) -> None:
        """Kill a server with SIGKILL; its name and port stay reserved for `restart`."""
        self.servers[name].kill()

    def restart(self, name: str) -> None:
        """Start a server again on its old port and wait until it answers."""
        self.servers[name].kill()
        self.servers[name].start()
        self.wait_ready(name)

    def looked_after(self) -> str:
        """What the servers logged last; those that serve no more are started again.

        Before that they are aborted, which has SGLang's schedulers log the stacks of their threads.
        """
        said = []
        for name in ("d0", "d1"):
            if self._serves(name):
                continue
            said.append(f"{name} and p0 serve no turn any more")
            for stuck in (name, "p0"):
                self.servers[stuck].signal(signal.SIGABRT)
                time.sleep(1.0)
                said.append(self.servers[stuck].log_tail(STACK_LINES))
                self.restart(stuck)
        tails = [server.log_tail() for server in self.servers.values()]
        return "\n".join([*said, *tails])

    def _serves(self, decoder: str) -> bool:
        """Whether a phase 1 over `p0` and a decoder is answered."""
        sampling = {"max_new_tokens": 2, "ignore_eos": True}
        room = {"bootstrap_port": self.bootstrap_port, "bootstrap_room": random.getrandbits(62)}
        asked: dict[str, Any] = {"input_ids": [80] * 9, "sampling_params": sampling}
        asked |= {"bootstrap_host": "127.0.0.1", **room}
        with ThreadPoolExecutor(2) as pool:
            legs = [self.servers[name] for name in ("p0", decoder)]
            return all(pool.map(lambda server: server.answers(asked), legs))

    def stop(self) -> None:
        """Take every server down, politely first."""
        for server in self.servers.values():
            server.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for server in self.servers.values():
            if server.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.process.wait(max(0.0, deadline - time.monotonic()))
            server.kill()

    def url(self, name: str) -> str:
        """The base URL of a server."""
        return self.servers[name].url

    @property
    def bootstrap_port(self) -> int:
        """Where decoders meet the prefiller `p0`."""
        port = self.servers["p0"].bootstrap_port
        assert port is not None
        return port


def _spawn(argv: list[str], env: Mapping[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a command under a keeper, which takes its tree down even if this process is killed."""
    lifeline, _ = _LIFELINE
    kept = [sys.executable, "-I", "-S", str(KEEPER), str(lifeline), str(STOP_GRACE_S)]
    return subprocess.Popen(
        [*kept, *argv],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lifeline,),
    )


def _wait_for_group(group: int) -> None:
    """Wait until the last process of a killed group is gone, so that its ports are free."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def free_port(taken: set[int | None] | None = None) -> int:
    """A free loopback port, remembered in `taken`, since nobody holds it until it is used."""
    taken = set() if taken is None else taken
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            taken.add(port)
            return port


def main() -> None:
    """Start the cluster, say where it is and hold it until Enter or Ctrl-C."""
    cluster = Cluster()
    started_at_s = time.monotonic()
    try:
        cluster.start()
        sys.stdout.write(f"up after {time.monotonic() - started_at_s:.0f} s\n")
        for server in cluster.servers.values():
            sys.stdout.write(f"{server.name} {server.url} {server.log_path}\n")
        sys.stdout.flush()
        sys.stdin.read(1)
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
