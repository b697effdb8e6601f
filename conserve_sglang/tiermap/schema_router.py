"""The router's part of a tier map as it stands on disk; see `tiermap/schema.py`."""

from typing import Annotated

from msgspec import Meta

from conserve_sglang.tiermap.fields import Count, FileName, Name, Port, Positive, Strict, Variable


class OverloadFile(Strict, frozen=True, kw_only=True):
    """What the router takes on before it says no, and who goes first; null is no bound."""

    is_fair: Annotated[
        bool, Meta(description="Order waiting turns by tenants' shares; false: by arrival.")
    ] = True
    max_phase_one_turns: Annotated[
        int, Meta(ge=0, description="Turns that may wait for a prefiller and KV room.")
    ] = 1024
    max_tail_turns: Annotated[
        int, Meta(ge=0, description="Turns that may wait behind one of their own conversation.")
    ] = 1024
    max_turns_per_tenant: Annotated[
        Count | None, Meta(description="Of both kinds together, of one tenant.")
    ] = None
    max_prefill_backlog_tokens: Annotated[
        Count, Meta(description="A prefiller with so many prompt tokens before it gets no more.")
    ] = 16384
    max_conversations: Annotated[
        Count, Meta(description="Live ones; the longest idle make room for new ones.")
    ] = 200000
    max_conversations_per_tenant: Count | None = None
    max_connections: Annotated[
        Count, Meta(description="Of each process that serves clients; further ones get a 503.")
    ] = 16384
    max_held_bytes: Annotated[
        Count, Meta(description="Bytes of requests not answered yet, of all its connections.")
    ] = 1024 * 1024 * 1024


class ObserveFile(Strict, frozen=True, kw_only=True):
    """What the router tells about its work."""

    report_interval_s: Annotated[
        float, Meta(ge=0, description="How often workers are asked for their load; 0: never.")
    ] = 5.0
    explained_turns: Annotated[
        int,
        Meta(ge=0, description="First and last turns kept of a conversation, with why; 0: none."),
    ] = 6
    otlp_endpoint: Annotated[
        Annotated[str, Meta(pattern="^https?://")] | None,
        Meta(
            description="OTLP/HTTP collector that turns are sent to as spans, with its path"
            " (/v1/traces); needs the extra otel.",
        ),
    ] = None
    trace_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Share of the conversations that are traced.")
    ] = 0.1
    log_conversation_names: Annotated[
        bool, Meta(description="Logs have clients' names of conversations, beside their keys.")
    ] = False


class BreakerFile(Strict, frozen=True, kw_only=True):
    """The circuit breaker of each worker."""

    consecutive_failures: Annotated[
        Count, Meta(description="So many failed turns in a row open it.")
    ] = 5
    failure_ratio: Annotated[
        float, Meta(gt=0, le=1, description="So does this share of the window's turns,")
    ] = 0.5
    min_turns: Annotated[Count, Meta(description="if there were so many of them.")] = 10
    window_s: Positive = 30.0
    cooldown_s: Annotated[
        Positive, Meta(description="How long it stays open, twice as long each time,")
    ] = 2.0
    max_cooldown_s: Annotated[Positive, Meta(description="up to this.")] = 60.0
    trial_turns: Annotated[
        Count, Meta(description="Turns that must be answered before it closes.")
    ] = 3


class HealthFile(Strict, frozen=True, kw_only=True):
    """How workers are watched, and when they count as lost."""

    probe_interval_s: Positive = 1.0
    probe_timeout_s: Positive = 10.0
    max_missed_probes: Count = 3
    stall_s: Annotated[
        Positive,
        Meta(description="A worker silent for so long while turns wait is asked once more."),
    ] = 5.0
    stall_probe_timeout_s: Annotated[
        Positive, Meta(description="Silent for so long from then on, it is lost.")
    ] = 10.0
    hang_s: Annotated[
        Positive,
        Meta(description="Turns waited so long without a byte: its scheduler's health is asked,"),
    ] = 30.0
    hang_probe_timeout_s: Annotated[
        Positive, Meta(description="twice, each for so long; then it is lost.")
    ] = 25.0
    breaker: BreakerFile = BreakerFile()


class AuthFile(Strict, frozen=True, kw_only=True):
    """Who may use the main port."""

    keys_file: Annotated[
        FileName | None,
        Meta(
            description="The key file, relative to this file (conserve-sglang keys new writes"
            " it); without one nobody is asked for a key.",
        ),
    ] = None


class StateFile(Strict, frozen=True, kw_only=True):
    """Where the router keeps its conversations."""

    path: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="An SQLite file, relative to this one; by default"
            " ~/.local/state/conserve-sglang/MAP-PORT.sqlite."
        ),
    ] = None
    keep_responses: Annotated[
        bool,
        Meta(
            description="Whether the file, or Redis, keeps what was said in stored responses, so"
            " that previous_response_id and GET work after a restart, and at every replica."
        ),
    ] = False
    redis: Annotated[
        Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")] | None,
        Meta(
            description="Instead: the URL of a Redis server that replicas of the router share;"
            " redis://USER@HOST:PORT/0 where a user is asked for."
        ),
    ] = None
    redis_password_env: Annotated[
        Variable | None,
        Meta(description="Environment variable with the password of that Redis server."),
    ] = None
    namespace: Annotated[
        Name, Meta(description="What keys in Redis begin with; one for each deployment.")
    ] = "conserve"


class TlsFile(Strict, frozen=True, kw_only=True):
    """The router's certificate on both its ports; paths are relative to this file."""

    cert_file: Annotated[
        FileName, Meta(description="PEM: the certificate, then those between it and its root.")
    ]
    key_file: Annotated[FileName, Meta(description="PEM: its private key, without a passphrase.")]


class WorkerTlsFile(Strict, frozen=True, kw_only=True):
    """Workers speak TLS (ssl-certfile and ssl-keyfile in sglang_flags)."""

    ca_file: Annotated[
        FileName | None,
        Meta(
            description="PEM: who may have signed their certificates, relative to this file; by"
            " default the system's authorities."
        ),
    ] = None
    verify: Annotated[
        bool, Meta(description="false: any certificate will do; somebody could step between.")
    ] = True


class RouterFile(Strict, frozen=True, kw_only=True):
    """How the router listens, identifies conversations and bounds its work."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 30000
    control_host: Annotated[
        str,
        Meta(
            min_length=1,
            description="Where it listens; other than a loopback address only with admin_key_env.",
        ),
    ] = "127.0.0.1"
    control_port: Port = 30001
    max_body_bytes: Count = 16 * 1024 * 1024
    queue_timeout_s: Positive = 60.0
    turn_timeout_s: Annotated[
        Positive | None,
        Meta(
            description="How long a turn may take from its arrival to its last byte; then it is"
            " stopped at its workers and answered 504, a stream with an error event. null: as long"
            " as it takes."
        ),
    ] = None
    drain_s: Annotated[
        float,
        Meta(
            ge=0,
            description="Told to stop, the router gives open answers so long, and takes nothing"
            " new; what is open then ends with an error that says so.",
        ),
    ] = 30.0
    conversation_ttl_s: Positive = 3600.0
    reclaim_idle_s: Positive = 15.0
    reserve_output_tokens: Count = 512
    max_attempts: Count = 3
    max_continuations: Annotated[int, Meta(ge=0)] = 2
    stored_responses_mb: Annotated[int, Meta(ge=0)] = 64
    response_objects_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="For GET /v1/responses/ID: response objects of stored responses, beside"
            " stored_responses_mb; 0: none.",
        ),
    ] = 32
    identify_by_user_field: bool = False
    identify_by_history: bool = True
    overload: OverloadFile = OverloadFile()
    observe: ObserveFile = ObserveFile()
    health: HealthFile = HealthFile()
    auth: AuthFile = AuthFile()
    worker_api_key_env: Annotated[
        Variable | None,
        Meta(description="Environment variable with the API key of the workers (--api-key)."),
    ] = None
    state: Annotated[
        StateFile | None, Meta(description="null: conversations are forgotten at the end.")
    ] = StateFile()
    admin_key_env: Annotated[
        Variable | None,
        Meta(description="Environment variable with the key that the control port asks for."),
    ] = None
    tls: Annotated[TlsFile | None, Meta(description="null: plain HTTP for clients.")] = None
    worker_tls: Annotated[
        WorkerTlsFile | None, Meta(description="null: plain HTTP to the workers.")
    ] = None
    processes: Annotated[
        Count,
        Meta(description="Processes that serve clients; another one decides if N > 1."),
    ] = 1
