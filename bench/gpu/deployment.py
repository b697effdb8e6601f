"""The model and tier maps of the GPU bench: Qwen3-0.6B's shape with dummy weights, on one GPU.

No weights and no tokenizer travel: the work per token is that of the real model, prompts are random
token ids.
"""

import json
from pathlib import Path
from typing import Any

SERVED_NAME = "qwen3-0.6b-dummy"
CONTEXT = 40_960
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
"""The published config.json of Qwen/Qwen3-0.6B, as far as SGLang reads it."""

CPU_SHAPE: dict[str, Any] = {
    "torch_dtype": "float32",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "bos_token_id": 510,
    "eos_token_id": 511,
}
"""What is smaller where the bench is tried on a CPU."""

GPU_FLAGS: dict[str, Any] = {
    "load-format": "dummy",
    "skip-tokenizer-init": True,
    "dtype": "bfloat16",
    "context-length": CONTEXT,
    "sampling-backend": "pytorch",
    "grammar-backend": "none",
    "skip-server-warmup": True,
}
CPU_FLAGS: dict[str, Any] = {
    "load-format": "dummy",
    "skip-tokenizer-init": True,
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    "dtype": "float32",
    "max-total-tokens": 65_536,
    "mem-fraction-static": 0.8,
    "chunked-prefill-size": 512,
    "skip-server-warmup": True,
    "sleep-on-idle": True,
}
PORTS = {"prefill": 30_100, "bootstrap": 30_150, "decode": 30_200, "router": 30_000}
BASELINE_OFFSET = 10
"""The second router, of the policy compared with, has its ports so much higher."""


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    eos = {"eos_token_id": config["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(eos))
    return folder


def gpu_tier_map(model: Path, gpu: str, *, attention: str, transfer: str) -> dict[str, Any]:
    """One prefill and one decode worker on GPU 0.

    They start one after the other, and the second one's share is of what the first one left.
    """
    shared = {"gpu": gpu, "gpu_ids": [0], "share_gpus": True}
    flags = {**GPU_FLAGS, "attention-backend": attention}
    prefill = {**flags, "mem-fraction-static": 0.4, "chunked-prefill-size": 8192}
    prefill["disable-prefill-cuda-graph"] = True
    decode = {**flags, "mem-fraction-static": 0.7, "cuda-graph-max-bs-decode": 128}
    return _tier_map(model, transfer, (shared, prefill), (shared, decode))


def cpu_tier_map(model: Path) -> dict[str, Any]:
    """The same on CPU servers, to try the bench out; no GPU result."""
    tier = ({"gpu": "cpu"}, CPU_FLAGS)
    return _tier_map(model, "mooncake", tier, tier)


def baseline_of(tier_map: dict[str, Any], policy: str) -> dict[str, Any]:
    """A second router over the same workers, with another policy."""
    router = tier_map["router"]
    moved = {name: router[name] + BASELINE_OFFSET for name in ("port", "control_port")}
    return {**tier_map, "policy": {"name": policy}, "router": {**router, **moved}}


def _tier_map(
    model: Path,
    transfer: str,
    prefill: tuple[dict[str, Any], dict[str, Any]],
    decode: tuple[dict[str, Any], dict[str, Any]],
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "model": {"path": str(model), "served_name": SERVED_NAME},
        "transfer_backend": transfer,
        "tiers": [
            {
                "name": "prefill",
                "role": "prefill",
                "count": 1,
                "base_port": PORTS["prefill"],
                "bootstrap_base_port": PORTS["bootstrap"],
                "sglang_flags": prefill[1],
                **prefill[0],
            },
            {
                "name": "decode",
                "role": "decode",
                "count": 1,
                "base_port": PORTS["decode"],
                "sglang_flags": decode[1],
                **decode[0],
            },
        ],
        "policy": {"name": "conserve"},
        "router": {
            "port": PORTS["router"],
            "control_port": PORTS["router"] + 1,
            "queue_timeout_s": 300.0,
        },
    }
