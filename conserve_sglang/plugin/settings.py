"""What the plugin is told, all of it by environment variables, which SGLang's children inherit.

CONSERVE_ENABLED=1            without it the plugin does nothing at all
CONSERVE_LOCAL_PREFILL=1      this is a decode server that takes local turns
CONSERVE_CONTINUE=1           this is a prefill server that takes part in continued answers
CONSERVE_COUNT_TRANSFERS=1    this is a prefill server that logs each KV transfer it sends
CONSERVE_TRANSFER_LOG=FILE    where to
CONSERVE_PHASE_LOG=FILE       log the batches of this server, for energy's attribution
CONSERVE_PHASE_LOG_MB=16      how large that file may grow before another is begun
SGLANG_USE_CPU_ENGINE=1       (SGLang's own) apply the CPU cures
SGLANG_ENABLE_UNIFIED_RADIX_TREE=1    (SGLang's own) decode servers of 0.5.17 need it
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

ENABLED = "CONSERVE_ENABLED"
LOCAL_PREFILL = "CONSERVE_LOCAL_PREFILL"
CONTINUE = "CONSERVE_CONTINUE"
COUNT_TRANSFERS = "CONSERVE_COUNT_TRANSFERS"
TRANSFER_LOG = "CONSERVE_TRANSFER_LOG"
PHASE_LOG = "CONSERVE_PHASE_LOG"
PHASE_LOG_MB = "CONSERVE_PHASE_LOG_MB"
CPU_ENGINE = "SGLANG_USE_CPU_ENGINE"
RUST_SERVER = "SGLANG_RUST_SERVER"
UNIFIED_TREE = "SGLANG_ENABLE_UNIFIED_RADIX_TREE"


DEFAULT_PHASE_LOG_MB = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The plugin's switches for one process."""

    enabled: bool
    local_prefill: bool
    continues: bool
    cpu_engine: bool
    rust_server: bool
    unified_tree: bool
    transfer_log: str | None
    phase_log: str | None
    phase_log_bytes: int


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process."""
    log = environ.get(TRANSFER_LOG) if _is_on(environ, COUNT_TRANSFERS) else None
    return Settings(
        enabled=_is_on(environ, ENABLED),
        local_prefill=_is_on(environ, LOCAL_PREFILL),
        continues=_is_on(environ, LOCAL_PREFILL) or _is_on(environ, CONTINUE),
        cpu_engine=_is_on(environ, CPU_ENGINE),
        rust_server=_is_on(environ, RUST_SERVER),
        unified_tree=_is_on(environ, UNIFIED_TREE),
        transfer_log=log or None,
        phase_log=environ.get(PHASE_LOG) or None,
        phase_log_bytes=_megabytes(environ.get(PHASE_LOG_MB, "")) * 1024 * 1024,
    )


def _megabytes(text: str) -> int:
    return int(text) if text.isdigit() and int(text) > 0 else DEFAULT_PHASE_LOG_MB


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in {"1", "true", "yes", "y", "on"}
