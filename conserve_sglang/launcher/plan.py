"""What a launch starts on this machine, as values. Pure: a tier map in, process specs out."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap, WorkerPlan
from conserve_sglang.energy.holding import KEY_VARIABLE, SOCKET_VARIABLE
from conserve_sglang.policy.registry import make_served_policy
from conserve_sglang.tiermap.check import unguarded_host
from conserve_sglang.tiermap.secrets import MASK, is_secret_flag, is_secret_variable, password_in
from conserve_sglang.workers.argv import LOOPBACK_HOSTS, worker_argv, worker_env

ROUTER = "router"
REMOTE_PYTHON = "python3"
LAST_WORDS_S = 5.0  # the router tells the clients of open answers that it ends
_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PLAIN = re.compile(r"[\w@%+=:,./-]*")


class ProcessKind(Enum):
    """What a process is to the launcher."""

    AGENT = "agent"
    WORKER = "worker"
    ROUTER = "router"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: its command, what its environment adds to ours, and how it shows its health.

    `health_host` and `health_port` answer a GET of `health_path` with 200 once it is ready, over
    TLS if `health_tls`. `listens` are
    the (host, port) pairs that must be free before it starts. `secret_flags` are flags whose
    values stand in environment variables of ours and are told in private; `withheld` are
    variables of ours that it must not inherit. `shared_gpus` are GPUs that other processes use too:
    those that share one are started one after the other, as each takes its part of the memory that
    is free when it starts. Told to end, it may take `drain_s` longer than others; told so twice, or
    when its main process died, what is left of it has `last_words_s` before it is killed.
    """

    name: str
    kind: ProcessKind
    argv: tuple[str, ...]
    env: Mapping[str, str]
    health_host: str
    health_port: int
    listens: tuple[tuple[str, int], ...]
    secret_flags: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    health_tls: bool = False
    health_path: str = "/health"
    shared_gpus: tuple[int, ...] = ()
    drain_s: float = 0.0
    last_words_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Everything one launcher starts; `notices` is what its user should know beforehand.

    `control` is the router's control port, `control_cert` the certificate it shows. `agents` read
    energy; they start before the workers and end after them.
    """

    workers: tuple[ProcessSpec, ...]
    router: ProcessSpec | None
    control: tuple[str, int]
    url: str
    notices: tuple[str, ...]
    control_cert: str | None = None
    agents: tuple[ProcessSpec, ...] = ()

    @property
    def processes(self) -> tuple[ProcessSpec, ...]:
        """All of them, in the order in which they are started."""
        return (*self.agents, *self.workers, *([self.router] if self.router else []))


def make_plan(
    tier_map: TierMap,
    *,
    is_here: Callable[[str], bool],
    python: str,
    with_router: bool,
    router_options: Sequence[str] = (),
    phase_dir: str = "out/logs",
) -> LaunchPlan:
    """The workers of this machine, their agents and the router.

    `phase_dir` is an absolute folder for the phase logs of workers, where energy is read. Raises
    ConfigError when there is no worker.
    """
    here = [worker for worker in tier_map.workers if is_here(worker.host)]
    if not here:
        hosts = ", ".join(sorted({worker.host for worker in tier_map.workers}))
        raise ConfigError(
            f"{tier_map.source}: no worker of it runs on this machine; its hosts are {hosts}."
            " Say which of them this is with --host"
        )
    settings = tier_map.router
    router = router_spec(tier_map, python=python, options=router_options)
    scheme = "http" if settings.tls is None else "https"
    return LaunchPlan(
        workers=tuple(
            worker_spec(tier_map, worker, python=python, phase_dir=phase_dir) for worker in here
        ),
        agents=agent_specs(
            tier_map, {worker.host for worker in here}, python=python, phase_dir=phase_dir
        ),
        router=router if with_router else None,
        control=(_reach(settings.control_host), settings.control_port),
        url=f"{scheme}://{_reach(settings.host)}:{settings.port}",
        notices=notices(tier_map),
        control_cert=None if settings.tls is None else settings.tls.cert_file,
    )


def worker_spec(
    tier_map: TierMap, worker: WorkerPlan, *, python: str, phase_dir: str = "out/logs"
) -> ProcessSpec:
    """The process of one SGLang server."""
    tier = tier_map.tier_of(worker)
    ports = [worker.port] + ([] if worker.bootstrap_port is None else [worker.bootstrap_port])
    argv = worker_argv(tier_map, worker, python=python)
    bound = argv[argv.index("--host") + 1]
    api_key, admin_key = tier_map.router.worker_api_key_env, tier_map.router.admin_key_env
    not_its_own = (api_key, admin_key, _redis_variable(tier_map), SOCKET_VARIABLE, KEY_VARIABLE)
    return ProcessSpec(
        name=worker.worker_id,
        kind=ProcessKind.WORKER,
        argv=argv,
        env={**worker_env(tier_map, worker), **_phase_log(tier_map, worker, phase_dir)},
        health_host=_reach(bound),
        health_port=worker.port,
        listens=tuple((bound, port) for port in ports),
        secret_flags={} if api_key is None else {"api-key": api_key},
        withheld=tuple(name for name in not_its_own if name is not None),
        health_tls=bool(tier.sglang_flags.get("ssl-certfile")),
        shared_gpus=tuple(sorted(worker.gpu_ids)) if tier.share_gpus else (),
    )


def _phase_log(tier_map: TierMap, worker: WorkerPlan, phase_dir: str) -> dict[str, str]:
    """What tells a worker's plugin to log its batches, where energy is read."""
    if tier_map.energy is None:
        return {}
    return {
        "CONSERVE_PHASE_LOG": f"{phase_dir}/{worker.worker_id}.phases",
        "CONSERVE_PHASE_LOG_MB": str(tier_map.energy.max_log_mb),
    }


def agent_specs(
    tier_map: TierMap, hosts: Iterable[str], *, python: str, phase_dir: str
) -> tuple[ProcessSpec, ...]:
    """The agents of these hosts of the tier map; none where energy is not read."""
    if tier_map.energy is None:
        return ()
    port = tier_map.energy.agent_port
    command = (python, "-m", "conserve_sglang.agent", "--tier-map", tier_map.source)
    redis_variable = _redis_variable(tier_map)
    return tuple(
        ProcessSpec(
            name="agent" if host in LOOPBACK_HOSTS else f"agent-{host}",
            kind=ProcessKind.AGENT,
            argv=(*command, "--host", host, "--phase-dir", phase_dir),
            env={},
            withheld=("CUDA_VISIBLE_DEVICES", *([redis_variable] if redis_variable else [])),
            health_host=host if host in LOOPBACK_HOSTS else "127.0.0.1",
            health_port=port,
            listens=((host if host in LOOPBACK_HOSTS else "0.0.0.0", port),),
        )
        for host in sorted(hosts)
    )


def _redis_variable(tier_map: TierMap) -> str | None:
    state = tier_map.router.state
    return None if state is None else state.redis_password_env


def router_spec(tier_map: TierMap, *, python: str, options: Sequence[str] = ()) -> ProcessSpec:
    """The process of the router, with further options of its command line.

    Raises ConfigError for a policy that is simulated only.
    """
    make_served_policy(tier_map.policy)
    settings = tier_map.router
    if settings.processes != 1:
        options = ["--workers", str(settings.processes), *options]
    return ProcessSpec(
        name=ROUTER,
        kind=ProcessKind.ROUTER,
        argv=(python, "-m", "conserve_sglang.router", "--tier-map", tier_map.source, *options),
        env={},
        health_host=_reach(settings.control_host),
        health_port=settings.control_port,
        listens=((settings.host, settings.port), (settings.control_host, settings.control_port)),
        health_tls=settings.tls is not None,
        health_path="/ready",
        drain_s=settings.drain_s,
        last_words_s=LAST_WORDS_S,
    )


def with_processes(tier_map: TierMap, num_processes: int | None) -> TierMap:
    """The tier map with another number of router processes, if one is given."""
    if num_processes is None:
        return tier_map
    return replace(tier_map, router=replace(tier_map.router, processes=num_processes))


def all_commands(
    tier_map: TierMap,
    *,
    is_here: Callable[[str], bool],
    python: str,
    router_options: Sequence[str] = (),
    phase_dir: str = "out/logs",
) -> tuple[tuple[str, ProcessSpec], ...]:
    """Every process of the map with its host, other machines' too: what --dry-run prints."""
    pythons = {
        worker.host: python if is_here(worker.host) else REMOTE_PYTHON
        for worker in tier_map.workers
    }
    agents = [
        (host, spec)
        for host in sorted(pythons)
        for spec in agent_specs(tier_map, [host], python=pythons[host], phase_dir=phase_dir)
    ]
    workers = [
        (
            worker.host,
            worker_spec(tier_map, worker, python=pythons[worker.host], phase_dir=phase_dir),
        )
        for worker in tier_map.workers
    ]
    router = router_spec(tier_map, python=python, options=router_options)
    return (*agents, *workers, (tier_map.router.host, router))


def without_secrets(spec: ProcessSpec) -> ProcessSpec:
    """The same process to be shown: values of keys, tokens and passwords are masked."""
    env = {name: MASK if is_secret_variable(name) else value for name, value in spec.env.items()}
    argv = tuple(
        MASK if before.startswith("--") and is_secret_flag(before) else word
        for before, word in zip(("", *spec.argv), spec.argv, strict=False)
    )
    argv += tuple(word for flag in spec.secret_flags for word in (f"--{flag}", MASK))
    return replace(spec, env=env, argv=argv, secret_flags={})


def command_line(spec: ProcessSpec) -> str:
    """The command with its environment, to be pasted into a shell; secrets are masked."""
    shown = without_secrets(replace(spec, secret_flags={}))
    settings = [f"{name}={_quote(value)}" for name, value in shown.env.items()]
    secrets = [f'--{flag} "${variable}"' for flag, variable in spec.secret_flags.items()]
    start = ["env", *settings] if settings else []
    return " ".join([*start, shlex.join(shown.argv), *secrets])


def notices(tier_map: TierMap) -> tuple[str, ...]:
    """What the tier map asks for and this version does not do."""
    found = []
    if tier_map.power_budget_w is not None and tier_map.energy is None:
        far = unguarded_host(tier_map)
        key = "" if far is None else f", and router.admin_key_env, the key of its agent on {far}"
        found.append(
            f"power budget {tier_map.power_budget_w:g} W named in the tier map is not enforced, as"
            f" no energy is read: add energy: {{}} to it{key}"
        )
    state = tier_map.router.state
    if state is not None and state.redis is not None and password_in(state.redis) is not None:
        found.append(
            "router.state.redis holds a password, which is told to whoever reads the tier map: put"
            " it into an environment variable, and name that in router.state.redis_password_env"
        )
    return tuple(found)


def backoff_s(failures: int, *, first_s: float, most_s: float) -> float:
    """How long to wait before a restart after `failures` failures in a row: doubling, bounded."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30))


def _reach(host: str) -> str:
    """Where to reach from this machine what listens there."""
    return _WILDCARD.get(host, host)


def _quote(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else shlex.quote(value)
