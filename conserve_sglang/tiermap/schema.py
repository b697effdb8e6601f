"""The tier map as it stands on disk: strict structs that mirror `core.tier`, and their JSON Schema.

Every key that is not written here is an error. The text beside a field is what the JSON Schema
shows in an editor.
"""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from conserve_sglang.core.tier import FlagValue
from conserve_sglang.tiermap.fields import Count, FileName, Name, Port, Positive, Strict
from conserve_sglang.tiermap.schema_router import (
    AuthFile,
    BreakerFile,
    HealthFile,
    ObserveFile,
    OverloadFile,
    RouterFile,
    StateFile,
    TlsFile,
    WorkerTlsFile,
)

SCHEMA_VERSION = 1


class ModelFile(Strict, frozen=True, kw_only=True):
    """The model all workers serve."""

    path: Annotated[
        str,
        Meta(
            min_length=1,
            description="A folder, if it starts with ., ~ or / (relative to this file);"
            " else a name on the model hub.",
        ),
    ]
    served_name: Annotated[
        str | None,
        Meta(
            description="What clients call it; by default the hub name, or the folder's own name."
        ),
    ] = None


class TierFile(Strict, frozen=True, kw_only=True):
    """A class of GPUs with its role and knobs, and how many workers of it run where."""

    name: Annotated[Name, Meta(description="Workers are called NAME-0, NAME-1, ...")]
    role: Literal["prefill", "decode", "mixed"]
    gpu: Annotated[str, Meta(min_length=1, description='Product name such as "A40", or "cpu".')]
    base_port: Annotated[
        Port, Meta(description="Port of the tier's first worker; the next ones follow it.")
    ]
    bootstrap_base_port: Annotated[
        Port | None, Meta(description="Prefill tiers only: first port of the bootstrap servers.")
    ] = None
    count: Annotated[Count, Meta(description="Workers of this tier.")] = 1
    host: Annotated[
        str, Meta(min_length=1, description="Machine they run on: a name or an address.")
    ] = "127.0.0.1"
    gpu_ids: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(description="Device indices on the host, tp for each worker; none on the CPU."),
    ] = ()
    tp: Annotated[Count, Meta(description="Tensor-parallel size: GPUs of one worker.")] = 1
    share_gpus: Annotated[
        bool, Meta(description="Whether workers of other tiers may use the same GPUs.")
    ] = False
    max_context_tokens: Annotated[
        Count | None,
        Meta(
            description="Decode and mixed tiers: for conversations of at most so many tokens;"
            " longer ones begin on tiers with a larger bound, or none."
        ),
    ] = None
    power_cap_w: Annotated[
        Positive | None, Meta(description="Power limit of each GPU in watts.")
    ] = None
    sm_clock_mhz: Annotated[
        Count | None, Meta(description="Locked SM clock of each GPU in MHz.")
    ] = None
    sglang_flags: Annotated[
        dict[str, FlagValue],
        Meta(
            description="SGLang server arguments without their leading dashes; true for a bare"
            " flag, false or null to drop a default."
        ),
    ] = msgspec.field(default_factory=dict)
    env: Annotated[
        dict[str, str], Meta(description="Added to the environment of the tier's workers.")
    ] = msgspec.field(default_factory=dict)
    profile: Annotated[
        FileName | None,
        Meta(
            description="What its workers take in time and power: a shipped profile's name, or a"
            " file (with a / or ending in .yaml), relative to this one."
        ),
    ] = None


class PolicyFile(Strict, frozen=True, kw_only=True):
    """The placement policy."""

    name: str = "conserve"
    params: Annotated[
        dict[str, FlagValue], Meta(description="Parameters; see conserve_sglang/policy/README.md.")
    ] = msgspec.field(default_factory=dict)


class SloFile(Strict, frozen=True, kw_only=True):
    """Latency targets in seconds; a target left out is none."""

    ttfet_s: Positive | None = None
    last_turn_tbt_s: Positive | None = None
    e2e_s: Positive | None = None


class EnergyFile(Strict, frozen=True, kw_only=True):
    """How energy is read and told: an agent on each host with workers."""

    meter: Annotated[
        Literal["auto", "zeus", "nvml", "replay", "model"],
        Meta(
            description="auto: zeus, else NVML, for GPUs; RAPL on the CPU. model: profile times"
            " observed work, always told as modelled."
        ),
    ] = "auto"
    agent_port: Annotated[Port, Meta(description="Of the agent of each host with workers.")] = 30002
    interval_s: Annotated[float, Meta(ge=0.2, le=60, description="How often meters are read.")] = (
        1.0
    )
    recording: Annotated[
        FileName | None,
        Meta(description="What the replay meter plays: a CSV file, relative to this one."),
    ] = None
    max_log_mb: Annotated[
        Count, Meta(description="Most that a worker's phase log takes on disk, twice.")
    ] = 16
    control_log: Annotated[
        FileName | None,
        Meta(
            description="Where the router writes what its power controller sees and moves, for"
            " `caps replay`; relative to this file, some 2 MB an hour."
        ),
    ] = None


class TierMapFile(Strict, frozen=True, kw_only=True):
    """A deployment: model, tiers, policy, targets, power budget and router settings."""

    schema_version: Literal[1]
    model: ModelFile
    tiers: Annotated[tuple[TierFile, ...], Meta(min_length=1)]
    policy: PolicyFile = PolicyFile()
    slo: SloFile = SloFile()
    power_budget_w: Annotated[
        Positive | None,
        Meta(
            description="Power the whole deployment may draw, in watts; enforced where energy is"
            " read."
        ),
    ] = None
    energy_budget_j_per_output_token: Annotated[
        Positive | None,
        Meta(description="What an output token may take, in joules of the whole deployment."),
    ] = None
    router: RouterFile = RouterFile()
    transfer_backend: Annotated[
        Literal["mooncake", "mooncake_tcp", "nixl"],
        Meta(description="SGLang's engine that moves KV from prefillers to decoders."),
    ] = "mooncake"
    energy: Annotated[
        EnergyFile | None, Meta(description="null: energy is not read, and no agent is started.")
    ] = None


PARTS: dict[str, type[msgspec.Struct]] = {
    "": TierMapFile,
    "model": ModelFile,
    "tiers[]": TierFile,
    "policy": PolicyFile,
    "slo": SloFile,
    "router": RouterFile,
    "router.overload": OverloadFile,
    "router.observe": ObserveFile,
    "router.health": HealthFile,
    "router.health.breaker": BreakerFile,
    "router.auth": AuthFile,
    "router.tls": TlsFile,
    "router.worker_tls": WorkerTlsFile,
    "router.state": StateFile,
    "energy": EnergyFile,
}
"""The struct at each path of the file, list indices left out."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a tier map, for editors and other programs."""
    schema = msgspec.json.schema(TierMapFile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def json_schema_text() -> str:
    """The JSON Schema as it is stored in `tier_maps/tier_map.schema.json`."""
    return json.dumps(json_schema(), indent=2) + "\n"
