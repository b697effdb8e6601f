"""GPUs and models as their makers describe them: what the estimator computes from.

GPUs: NVIDIA's data sheets; dense bf16 without sparsity. A100 and H100 are the SXM boards of 80 GB.
Models: `config.json` of their repositories.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from conserve_sglang.core.errors import ProfileError

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: FLOP/s, bytes and bytes/s (of `link` in one direction), watts, MHz.

    `idle_w`: what it draws with a server loaded that has nothing to do, where that was published.
    `least_cap_w`: the lowest power cap it accepts; None: not known.
    """

    name: str
    peak_flop_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    tdp_w: float
    max_clock_mhz: int
    idle_w: float | None = None
    least_cap_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated MLP."""

    name: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    is_tied: bool
    bytes_per_value: int = 2

    @property
    def layer_values(self) -> int:
        """Weights of all layers; embeddings and output head left out."""
        heads = self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * self.hidden * (heads + 3 * self.intermediate)

    @property
    def head_values(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocab

    @property
    def weight_bytes(self) -> int:
        """All weights in memory."""
        heads = 1 if self.is_tied else 2
        return self.bytes_per_value * (self.layer_values + heads * self.head_values)

    @property
    def step_bytes(self) -> int:
        """Weights read by one decode step."""
        return self.bytes_per_value * (self.layer_values + self.head_values)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_value


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A40", peak_flop_per_s=149.7e12, memory_bytes=48 * GB,
            memory_bytes_per_s=0.696e12, link_bytes_per_s=31.5 * GB, tdp_w=300,
            max_clock_mhz=1740, idle_w=76, least_cap_w=100),
        Gpu(name="L4", peak_flop_per_s=121e12, memory_bytes=24 * GB, memory_bytes_per_s=0.3e12,
            link_bytes_per_s=31.5 * GB, tdp_w=72, max_clock_mhz=2040, least_cap_w=40),
        Gpu(name="L40S", peak_flop_per_s=362e12, memory_bytes=48 * GB,
            memory_bytes_per_s=0.864e12, link_bytes_per_s=31.5 * GB, tdp_w=350,
            max_clock_mhz=2520),
        Gpu(name="A100", peak_flop_per_s=312e12, memory_bytes=80 * GB,
            memory_bytes_per_s=2.04e12, link_bytes_per_s=300 * GB, tdp_w=400,
            max_clock_mhz=1410, idle_w=63, least_cap_w=100),
        Gpu(name="H100", peak_flop_per_s=989e12, memory_bytes=80 * GB,
            memory_bytes_per_s=3.35e12, link_bytes_per_s=450 * GB, tdp_w=700,
            max_clock_mhz=1980, idle_w=75, least_cap_w=200),
        Gpu(name="H200", peak_flop_per_s=989e12, memory_bytes=141 * GB,
            memory_bytes_per_s=4.8e12, link_bytes_per_s=450 * GB, tdp_w=700,
            max_clock_mhz=1980, idle_w=75, least_cap_w=200),
    )
}  # fmt: skip
"""Idle: A40 with a loaded engine (arXiv 2606.01839's logs, 75-77 W), A100 and H100 as in
Splitwise's power table (arXiv 2311.18677), the H200 as the H100 (assumed: the same chip).

Least caps: the "Min Power Limit" of published `nvidia-smi -q` logs: A40 (board 900-2G133-0000-000),
L4 (900-2G193-0000-001), A100 SXM (github.com/NVIDIA/DCGM issue 152), H100 SXM (692-2G520-0200-000),
H200 (695-2G520-0280-000). Their maxima are the rated powers. The L40S's was not found."""

MODELS: Mapping[str, ModelShape] = {
    model.name: model
    for model in (
        ModelShape(name="Qwen/Qwen3-0.6B", num_layers=28, hidden=1024, intermediate=3072,
                   num_heads=16, num_kv_heads=8, head_dim=128, vocab=151_936, is_tied=True),
        ModelShape(name="Qwen/Qwen3-8B", num_layers=36, hidden=4096, intermediate=12_288,
                   num_heads=32, num_kv_heads=8, head_dim=128, vocab=151_936, is_tied=False),
    )
}  # fmt: skip


def gpu_named(name: str) -> Gpu:
    """A GPU by its product name, in any case. ProfileError lists the known ones."""
    found = _known(name)
    if found is None:
        raise ProfileError(f"nothing is known of a GPU {name!r}; known: {', '.join(GPUS)}")
    return found


def least_cap_w(gpu: str) -> float | None:
    """The lowest power cap a GPU accepts; None where that, or the GPU, is not known."""
    found = _known(gpu)
    return None if found is None else found.least_cap_w


def most_cap_w(gpu: str) -> float | None:
    """The highest power cap a GPU accepts, its rated power; None where the GPU is not known."""
    found = _known(gpu)
    return None if found is None else found.tdp_w


def _known(gpu: str) -> Gpu | None:
    return {known.lower(): one for known, one in GPUS.items()}.get(gpu.lower())
