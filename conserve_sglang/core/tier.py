"""A deployment as a value: model, tiers of GPUs, policy, SLO and router settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.worker import Role

FlagValue = str | int | float | bool | None

OWNED_FLAGS: Mapping[str, str] = {
    "model-path": "model.path",
    "served-model-name": "model.served_name",
    "port": "base_port",
    "tp": "tp",
    "tp-size": "tp",
    "tensor-parallel-size": "tp",
    "device": "gpu",
    "base-gpu-id": "gpu_ids",
    "disaggregation-mode": "role",
    "disaggregation-bootstrap-port": "bootstrap_base_port",
    "disaggregation-transfer-backend": "transfer_backend",
}
"""SGLang server arguments that a field of the tier map sets, so that `sglang_flags` may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A class of GPUs with its role and knobs, and how many workers of it run where.

    `gpu` is the product name ("A40"), or "cpu". `gpu_ids` are the device indices on `host` given
    to the tier's workers in order, `tp` for each; empty on the CPU. Power in watts, clock in MHz;
    None leaves the device as it is. `sglang_flags` are SGLang server arguments without their
    dashes ("chunked-prefill-size": 2048); True stands for a bare flag, None or False drops a
    default of ours. `env` is added to the workers' environment. Workers listen on `base_port`,
    `base_port + 1`, ...; prefillers' bootstrap servers on `bootstrap_base_port`, ....
    `share_gpus` says that other workers may use the same GPUs. `profile` names what its workers
    take in time and power: a profile that is shipped, or a file. `max_context_tokens`: a decode or
    mixed tier for conversations of at most so many tokens.
    """

    name: TierName
    role: Role
    gpu: str
    count: int
    host: str
    gpu_ids: tuple[int, ...]
    tp: int
    base_port: int
    power_cap_w: float | None
    sm_clock_mhz: int | None
    sglang_flags: Mapping[str, FlagValue]
    env: Mapping[str, str]
    bootstrap_base_port: int | None = None
    share_gpus: bool = False
    profile: str | None = None
    max_context_tokens: int | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether the tier's workers run without a GPU."""
        return self.gpu.lower() == "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model all workers serve. `path` is a folder or a hub name; `served_name` is what
    clients call it."""

    path: str
    served_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """A placement policy by name, with its parameters."""

    name: str
    params: Mapping[str, FlagValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency targets in seconds; None: no target."""

    ttfet_s: float | None = None
    last_turn_tbt_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSettings:
    """What the router tells about its work.

    `report_interval_s`: how often each worker is asked for its own load; 0: never.
    `explained_turns`: how many first and how many last turns of each conversation are kept with
    where and why they ran; 0: none. `otlp_endpoint`: where OpenTelemetry spans are sent; None: no
    traces. `trace_ratio`: share of the conversations that are traced. `log_conversation_names`:
    logs have what clients call conversations, beside the keys.
    """

    report_interval_s: float = 5.0
    explained_turns: int = 6
    otlp_endpoint: str | None = None
    trace_ratio: float = 0.1
    log_conversation_names: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """Who may use the main port: the tenants of a key file; without one, everybody."""

    keys_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The certificate, with those between it and its root, and its key: PEM files."""

    cert_file: str
    key_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTlsSettings:
    """Workers speak TLS. Theirs must be certificates of `ca_file`, or of the system's authorities
    where that is None; `verify` False takes any."""

    ca_file: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """Where the router keeps its conversations: in the SQLite file `path`, by default one of its
    own in the user's state folder, or, shared by replicas, in Redis under `namespace`, whose
    password stands in the environment variable `redis_password_env`.
    With `keep_responses` the file, or Redis, keeps stored responses too, and so what was said."""

    path: str | None = None
    keep_responses: bool = False
    redis: str | None = None
    redis_password_env: str | None = None
    namespace: str = "conserve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What the router takes on before it says no, and who goes first; None is no bound.

    `max_phase_one_turns` may wait for a prefiller and KV room, `max_tail_turns` for their
    conversation's KV to arrive; both kinds together `max_turns_per_tenant`. A prefiller with
    `max_prefill_backlog_tokens` prompt tokens before it is sent no more, so that turns wait in the
    router, where `is_fair` orders them between tenants. The last two count for each process that
    serves clients: connections, and the bytes of requests read and not answered yet.
    """

    is_fair: bool = True
    max_phase_one_turns: int = 1024
    max_tail_turns: int = 1024
    max_turns_per_tenant: int | None = None
    max_prefill_backlog_tokens: int = 16_384
    max_conversations: int = 200_000
    max_conversations_per_tenant: int | None = None
    max_connections: int = 16_384
    max_held_bytes: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How the router listens, identifies conversations and bounds its work.

    The control port changes what the router thinks of its workers, so it has a host and a key of
    its own. `worker_api_key_env` and `admin_key_env` name environment variables: with the API key
    the workers ask for, and with the key the control port asks for. `state` None: conversations are
    forgotten when the router ends. `processes` serve clients; if several, another decides.
    Answers of `/v1/responses` are stored in memory, to go on from up to `stored_responses_mb` (0:
    none), and whole, for who asks for them again, up to `response_objects_mb` beside that. They
    outlive the router, and are known to its replicas, if `state.keep_responses` says so.
    A turn may wait `queue_timeout_s` for a place and take `turn_timeout_s` in all, its answer
    included; None: as long as it takes. `tls` is for both ports, `worker_tls` towards the workers.
    A router that is told to stop gives open answers `drain_s`.
    """

    host: str = "127.0.0.1"
    port: int = 30000
    control_host: str = "127.0.0.1"
    control_port: int = 30001
    max_body_bytes: int = 16 * 1024 * 1024
    queue_timeout_s: float = 60.0
    turn_timeout_s: float | None = None
    conversation_ttl_s: float = 3600.0
    reclaim_idle_s: float = 15.0
    reserve_output_tokens: int = 512
    max_attempts: int = 3
    max_continuations: int = 2
    identify_by_user_field: bool = False
    identify_by_history: bool = True
    overload: Overload = field(default_factory=Overload)
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    worker_api_key_env: str | None = None
    state: StateSettings | None = field(default_factory=StateSettings)
    admin_key_env: str | None = None
    tls: TlsSettings | None = None
    worker_tls: WorkerTlsSettings | None = None
    processes: int = 1
    stored_responses_mb: int = 64
    response_objects_mb: int = 32
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySettings:
    """How energy is read and told; a tier map without it reads none.

    On each host with workers an agent reads its `meter` every `interval_s` and listens on
    `agent_port`. `recording` is what the replay meter plays. Each worker's phase log takes up to
    `max_log_mb` on disk, twice. `control_log` is where the router writes what its power controller
    sees and moves; None: nowhere.
    """

    meter: str = "auto"
    agent_port: int = 30002
    interval_s: float = 1.0
    recording: str | None = None
    max_log_mb: int = 16
    control_log: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """One worker of a tier map: where it listens and which GPUs it has.

    `bootstrap_port` is set on prefillers alone. `max_context_tokens` is its tier's.
    """

    worker_id: WorkerId
    role: Role
    tier: TierName
    host: str
    port: int
    bootstrap_port: int | None
    gpu_ids: tuple[int, ...]
    max_context_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMap:
    """The whole deployment file.

    `transfer_backend` is SGLang's name of the engine that moves KV from prefillers to decoders.
    """

    source: str
    model: Model
    tiers: tuple[Tier, ...]
    workers: tuple[WorkerPlan, ...]
    policy: PolicyChoice
    slo: Slo
    power_budget_w: float | None
    energy_budget_j_per_output_token: float | None = None
    router: RouterSettings = field(default_factory=RouterSettings)
    transfer_backend: str = "mooncake"
    energy: EnergySettings | None = None

    @property
    def has_budget(self) -> bool:
        """Whether a controller keeps it under a budget."""
        return self.power_budget_w is not None or self.energy_budget_j_per_output_token is not None

    def tier_of(self, worker: WorkerPlan) -> Tier:
        """The tier a worker belongs to."""
        return next(tier for tier in self.tiers if tier.name == worker.tier)
