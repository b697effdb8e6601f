"""The ways a request can take to the fake workers, and the processes that are needed for each."""

import hashlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.native.programs import PLACE, running
from conserve_sglang.core.errors import ConfigError

NUM_PREFILLERS, NUM_DECODERS = 2, 4
MODEL = "bench-model"
API_KEY = b"none"  # what the client of native/ sends to everybody
START_UP_S = 60.0
UNBOUNDED_TOKENS = 10**9  # 32 prompts at once are seconds of prefill; these fakes take no time
ROOT = Path(__file__).parents[2]
COMPILED = ROOT / ".venv-compiled"
_NAME = f"x-conversation-id: bench-{PLACE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything listens. Bootstrap ports are only named, nothing connects to them."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    bootstrap: int
    routers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Somebody else's router, in an environment of its own: both wheels install the same script."""

    requirement: str
    venv: Path
    launch: tuple[str, ...]
    options: tuple[str, ...] = ()


SGLANG_ROUTER = Rival(
    requirement="sglang-router==0.3.2",
    venv=ROOT / ".venv-bench",
    launch=("sglang_router.launch_router",),
)
SMG = Rival(
    requirement="smg==1.13.0",
    venv=ROOT / ".venv-bench-smg",
    launch=("smg", "launch"),
    options=("--disable-tokenizer-autoload",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A router with the traffic sent through it. `policy` None: not a router of ours."""

    name: str
    what: str
    policy: str | None = None
    header: str | None = None
    turns_per_name: int = 1  # a connection's turns of one name; 0: all of them
    rival: Rival | None = None
    processes: int = 1
    max_continuations: int = 2
    is_compiled: bool = False  # of `make compiled`, not of the checkout
    places: Literal["", "and_reports", "with_report"] = ""  # turns that go to workers elsewhere
    relay_width: int = 0  # not a router but bench.overhead.relay, to so many workers

    @property
    def has_process(self) -> bool:
        """Whether there is a router at all."""
        return bool(self.rival or self.policy or self.relay_width)


DIRECT = Candidate(name="direct", what="no router, one decoder")
RIVAL_PD = Candidate(
    name="sglang-router", what="PD mode, round_robin", header=_NAME, rival=SGLANG_ROUTER
)
SMG_PD = Candidate(name="smg", what="PD mode, round_robin", header=_NAME, rival=SMG)
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
    turns_per_name=0,
)
OURS_AGENT = Candidate(
    name="ours-agent",
    what="policy conserve, conversations of 1 first and 4 tail turns",
    policy="conserve",
    header=_NAME,
    turns_per_name=5,
)
OURS_UNNAMED = Candidate(
    name="ours-unnamed", what="policy conserve, no name, history filed", policy="conserve"
)
OURS_AGENT_2 = replace(
    OURS_AGENT,
    name="ours-agent-x2",
    what="the same with --workers 2, on the client's core too",
    processes=2,
)
OURS_PLACE = replace(
    OURS_TAIL,
    name="ours-place",
    what="/v1/place and /v1/place/report for the turns of ours-tail, which are not sent",
    places="and_reports",
)
OURS_PLACE_NEXT = replace(
    OURS_TAIL,
    name="ours-place-next",
    what="the same, each report in the request for the next place",
    places="with_report",
)
OURS_UNCONTINUED = replace(
    OURS_TAIL,
    name="ours-uncontinued",
    what="ours-tail, streams not to be continued",
    max_continuations=0,
)
OURS_COMPILED = tuple(
    replace(
        each, name=f"{each.name}-c", what=f"{each.what}; compiled (make compiled)", is_compiled=True
    )
    for each in (
        OURS_PD, OURS_FIRST, OURS_TAIL, OURS_AGENT, OURS_UNNAMED, OURS_PLACE, OURS_PLACE_NEXT
    )
)  # fmt: skip
ALL = (
    DIRECT, RELAY_TAIL, RELAY_PD, RIVAL_PD, SMG_PD,
    OURS_PD, OURS_FIRST, OURS_TAIL, OURS_AGENT, OURS_UNNAMED, OURS_AGENT_2,
    OURS_PLACE, OURS_PLACE_NEXT, OURS_UNCONTINUED, *OURS_COMPILED,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A candidate that takes requests on `port`; `pid` None: there is no router."""

    candidate: Candidate
    port: int
    pid: int | None


def install_rivals() -> None:
    """Put each rival into its own environment, which nothing else uses."""
    for rival in (SGLANG_ROUTER, SMG):
        subprocess.run([sys.executable, "-m", "venv", str(rival.venv)], check=True)
        pip = [str(rival.venv / "bin" / "pip"), "install", "--quiet", rival.requirement]
        subprocess.run(pip, check=True)


def compiled_python() -> Path:
    """The interpreter of `make compiled`. Raises ConfigError if it has other sources than these."""
    (packages,) = list(COMPILED.glob("lib/python3*/site-packages")) or [COMPILED]
    for source in sorted(ROOT.glob("conserve_sglang/**/*.py")):
        built = packages / source.relative_to(ROOT)
        if not built.exists() or built.read_bytes() != source.read_bytes():
            name = source.relative_to(ROOT)
            raise ConfigError(f"{COMPILED.name} is not of this {name}. Run `make compiled`.")
    return COMPILED / "bin" / "python"


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
            allowed = cores if candidate.processes == 1 else os.sched_getaffinity(0)
            pid = stack.enter_context(running(argv, allowed, log))
            _wait_until_ready(candidate, port, log)
            found.append(Running(candidate=candidate, port=port, pid=pid))
        yield found


def _argv(candidate: Candidate, ports: Ports, port: int, side_port: int, folder: Path) -> list[str]:
    if candidate.rival is not None:
        return _rival_argv(candidate.rival, ports, port, side_port)
    if candidate.relay_width:
        upstreams = [ports.prefill[0], ports.decode[0]][-candidate.relay_width :]
        relay = [sys.executable, "-m", "bench.overhead.relay", str(port)]
        return [*relay, *map(str, upstreams)]
    path = folder / f"{candidate.name}.yaml"
    keys = folder / "keys.yaml"
    digest = hashlib.sha256(API_KEY).hexdigest()
    keys.write_text(f"tenants: [{{name: bench, keys: ['sha256:{digest}'], may_place: true}}]\n")
    keys.chmod(0o600)
    path.write_text(_tier_map(candidate, ports, port, side_port))
    python = [str(compiled_python()), "-I"] if candidate.is_compiled else [sys.executable]
    router = [*python, "-m", "conserve_sglang.router", "--workers", str(candidate.processes)]
    return [*router, "--tier-map", str(path), "--log-level", "WARNING"]


def _rival_argv(rival: Rival, ports: Ports, port: int, side_port: int) -> list[str]:
    python = rival.venv / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"{rival.requirement} is not installed. Run with --install-rival once.")
    argv = [str(python), "-m", *rival.launch, "--pd-disaggregation", *rival.options]
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
router:
  port: {port}
  control_port: {control_port}
  max_continuations: {candidate.max_continuations}
  auth: {{keys_file: keys.yaml}}
  overload: {{max_prefill_backlog_tokens: {UNBOUNDED_TOKENS}}}
  state: {{path: {candidate.name}.sqlite}}
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
