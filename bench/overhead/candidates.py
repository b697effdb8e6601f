"""The ways a request can take to the fake workers, and the processes that are needed for each."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.native.programs import PLACE, running
from conserve_sglang.core.errors import ConfigError

NUM_PREFILLERS, NUM_DECODERS = 2, 4
MODEL = "bench-model"
RIVAL = "sglang-router==0.3.2"
RIVAL_VENV = Path(__file__).parents[2] / ".venv-bench"
START_UP_S = 60.0
_NAME = f"x-conversation-id: bench-{PLACE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything listens. Bootstrap ports are only named, nothing connects to them."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    bootstrap: int
    routers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A router with the traffic sent through it. `policy` None: not a router of ours."""

    name: str
    what: str
    policy: str | None = None
    header: str | None = None
    is_pinned: bool = False
    is_rival: bool = False
    relay_width: int = 0  # not a router but bench.overhead.relay, to so many workers

    @property
    def has_process(self) -> bool:
        """Whether there is a router at all."""
        return bool(self.is_rival or self.policy or self.relay_width)


DIRECT = Candidate(name="direct", what="no router, one decoder")
RIVAL_PD = Candidate(name="sglang-router", what="PD mode, round_robin", header=_NAME, is_rival=True)
RELAY_TAIL = Candidate(name="relay-tail", what="bare relay to one decoder", relay_width=1)
RELAY_PD = Candidate(name="relay-pd", what="bare relay to a pair", relay_width=2)
OURS_PD = Candidate(
    name="ours-pd", what="policy stock-pd, new name each", policy="stock-pd", header=_NAME
)
OURS_FIRST = Candidate(
    name="ours-first", what="policy conserve, new name each", policy="conserve", header=_NAME
)
OURS_TAIL = Candidate(
    name="ours-tail",
    what="policy conserve, pinned conversations",
    policy="conserve",
    header=_NAME,
    is_pinned=True,
)
OURS_UNNAMED = Candidate(
    name="ours-unnamed", what="policy conserve, no name, history filed", policy="conserve"
)
ALL = (DIRECT, RELAY_TAIL, RELAY_PD, RIVAL_PD, OURS_PD, OURS_FIRST, OURS_TAIL, OURS_UNNAMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A candidate that takes requests on `port`; `pid` None: there is no router."""

    candidate: Candidate
    port: int
    pid: int | None


def install_rival() -> None:
    """Put sglang-router into its own environment, which nothing else uses."""
    subprocess.run([sys.executable, "-m", "venv", str(RIVAL_VENV)], check=True)
    pip = [str(RIVAL_VENV / "bin" / "pip"), "install", "--quiet", RIVAL]
    subprocess.run(pip, check=True)


def free_ports() -> Ports:
    """Ports in one row that nothing listens on."""
    num_routers = 2 * len(ALL)
    length = NUM_PREFILLERS + NUM_DECODERS + NUM_PREFILLERS + num_routers
    for base in range(21_000, 29_000, 50):
        if all(_is_free(base + number) for number in range(length)):
            row = range(base, base + length)
            decode, bootstrap = NUM_PREFILLERS, NUM_PREFILLERS + NUM_DECODERS
            return Ports(
                prefill=tuple(row[:decode]),
                decode=tuple(row[decode:bootstrap]),
                bootstrap=row[bootstrap],
                routers=tuple(row[bootstrap + NUM_PREFILLERS :]),
            )
    raise ConfigError("no row of free ports between 21000 and 29000")


@contextmanager
def up(
    candidates: Sequence[Candidate], ports: Ports, cores: set[int], folder: Path
) -> Iterator[list[Running]]:
    """All candidates ready for requests; their routers run on `cores`, logs go to `folder`."""
    with ExitStack() as stack:
        found = []
        for number, candidate in enumerate(candidates):
            if not candidate.has_process:
                found.append(Running(candidate=candidate, port=ports.decode[0], pid=None))
                continue
            port, side_port = ports.routers[2 * number : 2 * number + 2]
            argv = _argv(candidate, ports, port, side_port, folder)
            log = folder / f"{candidate.name}.log"
            pid = stack.enter_context(running(argv, cores, log))
            _wait_until_ready(candidate, port, log)
            found.append(Running(candidate=candidate, port=port, pid=pid))
        yield found


def _argv(candidate: Candidate, ports: Ports, port: int, side_port: int, folder: Path) -> list[str]:
    if candidate.is_rival:
        return _rival_argv(ports, port, side_port)
    if candidate.relay_width:
        upstreams = [ports.prefill[0], ports.decode[0]][-candidate.relay_width :]
        relay = [sys.executable, "-m", "bench.overhead.relay", str(port)]
        return [*relay, *map(str, upstreams)]
    path = folder / f"{candidate.name}.yaml"
    path.write_text(_tier_map(candidate, ports, port, side_port))
    router = [sys.executable, "-m", "conserve_sglang.router"]
    return [*router, "--tier-map", str(path), "--log-level", "WARNING"]


def _rival_argv(ports: Ports, port: int, side_port: int) -> list[str]:
    python = RIVAL_VENV / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"{RIVAL} is not installed. Run with --install-rival once.")
    argv = [str(python), "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    argv += ["--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--prometheus-port", str(side_port), "--prometheus-host", "127.0.0.1"]
    argv += ["--log-level", "warn"]
    for number, worker in enumerate(ports.prefill):
        argv += ["--prefill", f"http://127.0.0.1:{worker}", str(ports.bootstrap + number)]
    for worker in ports.decode:
        argv += ["--decode", f"http://127.0.0.1:{worker}"]
    return argv


def _tier_map(candidate: Candidate, ports: Ports, port: int, control_port: int) -> str:
    return f"""schema_version: 1
model: {{path: {MODEL}, served_name: {MODEL}}}
tiers:
  - name: prefill
    role: prefill
    gpu: cpu
    count: {NUM_PREFILLERS}
    base_port: {ports.prefill[0]}
    bootstrap_base_port: {ports.bootstrap}
  - name: decode
    role: decode
    gpu: cpu
    count: {NUM_DECODERS}
    base_port: {ports.decode[0]}
policy: {{name: {candidate.policy}}}
router: {{port: {port}, control_port: {control_port}, state: {{path: {candidate.name}.sqlite}}}}
"""


def _wait_until_ready(candidate: Candidate, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_UP_S
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise ConfigError(f"{candidate.name} was not ready in {START_UP_S:g} s. Its log ends:\n{tail}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
