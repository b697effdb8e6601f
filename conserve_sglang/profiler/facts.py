"""What a profile says it holds for: the model, the engine, the machine."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import Tier, TierMap

_UNKNOWN_TOKEN_IDS = 10_000
_UNKNOWN_CONTEXT = 8192


def num_token_ids(model: Path) -> int:
    """How many token ids a model folder has; of a hub name fewer than any model we know of."""
    return int(_config(model).get("vocab_size") or _UNKNOWN_TOKEN_IDS)


def context_tokens(model: Path) -> int:
    """The longest context of a model folder; of a hub name a cautious guess."""
    return int(_config(model).get("max_position_embeddings") or _UNKNOWN_CONTEXT)


def setup_of(tier_map: TierMap, tier: Tier, infos: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What two runs must have in common for their points to be of one profile."""
    told = list(infos)
    first = told[0] if told else {}
    return {
        "gpu": tier.gpu,
        "model": tier_map.model.served_name,
        "tp": str(tier.tp),
        "power_cap_w": "none" if tier.power_cap_w is None else f"{tier.power_cap_w:g}",
        "sm_clock_mhz": "none" if tier.sm_clock_mhz is None else str(tier.sm_clock_mhz),
        "engine_version": str(first.get("version") or "unknown"),
        "dtype": dtype_of(first),
        "graph_mode": graph_mode(tier, first),
        "attention": str(first.get("attention_backend") or "unknown"),
        "chunk_tokens": " ".join(str(info.get("chunked_prefill_size")) for info in told),
    }


def dtype_of(info: Mapping[str, Any]) -> str:
    """What the engine was told to compute in; "auto" is the model's own."""
    return str(info.get("dtype") or "auto")


def graph_mode(tier: Tier, info: Mapping[str, Any]) -> str:
    """ "none" on the CPU, else whether decode steps are replayed from CUDA graphs."""
    if tier.is_cpu:
        return "none"
    return "eager" if info.get("disable_cuda_graph") else "cuda-graph"


def machine_facts(gpu: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the numbers depend on beside the setup, in words."""
    load = os.getloadavg()[1]
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cpu_threads": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{int((_first('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 2**20:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average_5_min": f"{load:.1f}",
        **(gpu or {}),
    }


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    text = told.get("text_config")
    return {**told, **text} if isinstance(text, dict) else dict(told)


def _first(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)
