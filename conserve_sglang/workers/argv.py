"""The command line and environment of one SGLang server, from a tier map. Pure.

Defaults of ours come first, the tier's `sglang_flags` over them, and what other fields of the
tier map own is last. The order of the flags is fixed, so that a command line can be compared.
"""

from collections.abc import Mapping

from conserve_sglang.core.tier import FlagValue, TierMap, WorkerPlan
from conserve_sglang.core.worker import Role
from conserve_sglang.policy import POLICIES

LOCAL_TURN_POLICIES = frozenset(POLICIES) - {"stock-pd", "round-robin"}
"""Policies that send turns to a decoder without a prefiller beside it."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

_DECODE_FLAGS: Mapping[str, FlagValue] = {
    "disaggregation-decode-enable-radix-cache": True,
    "enable-session-radix-cache": True,
    # Stock sizes a decoder's activations for no prefill at all; this bounds an append's.
    "chunked-prefill-size": 2048,
    # Other policies order by a prefix that SGLang does not compute in decode mode.
    "schedule-policy": "fcfs",
    "enable-cache-report": True,
}
_DEFAULT_FLAGS: Mapping[Role, Mapping[str, FlagValue]] = {
    Role.PREFILL: {},
    Role.DECODE: _DECODE_FLAGS,
    Role.MIXED: {"enable-session-radix-cache": True, "enable-cache-report": True},
}
# What --enable-session-radix-cache needs on SGLang 0.5.17; 0.5.23 knows no other tree.
_SESSION_ENV: Mapping[str, str] = {"SGLANG_ENABLE_UNIFIED_RADIX_TREE": "1"}
_CPU_ENV: Mapping[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "MC_FORCE_TCP": "1",
    "MOONCAKE_PROTOCOL": "tcp",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def worker_argv(tier_map: TierMap, worker: WorkerPlan, *, python: str) -> tuple[str, ...]:
    """The whole command, starting with the interpreter that has SGLang."""
    argv = [python, "-m", "sglang.launch_server"]
    for name, value in worker_flags(tier_map, worker).items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv += [f"--{name}", str(value)]
    return tuple(argv)


def worker_flags(tier_map: TierMap, worker: WorkerPlan) -> dict[str, FlagValue]:
    """SGLang's server arguments; True is a bare flag, None or False one left out."""
    tier = tier_map.tier_of(worker)
    flags: dict[str, FlagValue] = {
        "model-path": tier_map.model.path,
        "served-model-name": tier_map.model.served_name,
        "host": worker.host if worker.host in LOOPBACK_HOSTS else "0.0.0.0",
        "port": worker.port,
    }
    if tier.is_cpu:
        flags["device"] = "cpu"
    if tier.tp > 1:
        flags["tp-size"] = tier.tp
    if worker.role is not Role.MIXED:
        flags["disaggregation-mode"] = worker.role.value
        flags["disaggregation-transfer-backend"] = tier_map.transfer_backend
    if worker.bootstrap_port is not None:
        flags["disaggregation-bootstrap-port"] = worker.bootstrap_port
    return {**flags, **_DEFAULT_FLAGS[worker.role], **tier.sglang_flags}


def worker_env(tier_map: TierMap, worker: WorkerPlan) -> dict[str, str]:
    """What the worker's environment has beside the launcher's own."""
    tier = tier_map.tier_of(worker)
    env = {"CONSERVE_ENABLED": "1"}
    if tier_map.model.path.startswith("/"):
        env["HF_HUB_OFFLINE"] = "1"
    if worker.role is not Role.PREFILL:
        env |= _SESSION_ENV
    if worker.role is Role.PREFILL:
        env["CONSERVE_CONTINUE"] = "1"
    if worker.role is Role.DECODE:
        # Written out when off, too: a 1 left in the launcher's own environment must not win.
        sends_local = tier_map.policy.name in LOCAL_TURN_POLICIES
        env["CONSERVE_LOCAL_PREFILL"] = "1" if sends_local else "0"
    if tier.is_cpu:
        env |= {**_CPU_ENV, "CUDA_VISIBLE_DEVICES": ""}
    else:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu_id) for gpu_id in worker.gpu_ids)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, else the fastest GPU is 0
    return {**env, **tier.env}
