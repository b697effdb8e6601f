"""How long the parts of a turn take on one kind of worker: a value whose numbers name their source.

A decode step is affine in the batch's requests and KV tokens, which is what lets a worker advance
many steps in closed form. All times in seconds.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

PAPER = "arXiv 2606.01839's published profiling logs, A40 at 300 W, Qwen3-0.6B bf16, eager mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfModel:
    """Unit costs. `sources` names where each parameter comes from.

    `prefill_tokens` and `prefill_s`: seconds to prefill a prompt of which nothing is cached;
    linear between points, beyond the last one growing with the square of the length.
    `append_floor_s`, `append_knee_tokens`, `append_base_s`, `append_s_per_token`: the least an
    append costs by the length of its context. `transfer_*`: the same form for moving KV.
    """

    name: str
    decode_step_s: float
    decode_s_per_request: float
    decode_s_per_kv_token: float
    prefill_tokens: tuple[int, ...]
    prefill_s: tuple[float, ...]
    append_floor_s: float
    append_knee_tokens: int
    append_base_s: float
    append_s_per_token: float
    transfer_floor_s: float
    transfer_knee_tokens: int
    transfer_base_s: float
    transfer_s_per_token: float
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.prefill_tokens) != len(self.prefill_s) or not self.prefill_tokens:
            raise ValueError(f"{self.name}: prefill needs a time for each length")
        for values in (self.prefill_tokens, self.prefill_s):
            if any(later <= earlier for earlier, later in pairwise(values)):
                raise ValueError(f"{self.name}: prefill lengths and times must ascend")

    def decode_step(self, num_requests: int, kv_tokens: int) -> float:
        """One step of a batch that holds `kv_tokens` in all."""
        return (
            self.decode_step_s
            + self.decode_s_per_request * num_requests
            + self.decode_s_per_kv_token * kv_tokens
        )

    def whole_prefill(self, tokens: int) -> float:
        """Prefill of the first `tokens` of a prompt, nothing cached."""
        points, times = self.prefill_tokens, self.prefill_s
        if tokens <= 0:
            return 0.0
        if tokens <= points[0]:
            return times[0]
        if tokens >= points[-1]:
            return times[-1] * (tokens / points[-1]) ** 2
        right = bisect_right(points, tokens)
        low, start = points[right - 1], times[right - 1]
        return start + (tokens - low) * (times[right] - start) / (points[right] - low)

    def append_floor(self, context_tokens: int) -> float:
        """The least that prefilling anything on top of a cached prefix costs."""
        if context_tokens <= self.append_knee_tokens:
            return self.append_floor_s
        return self.append_base_s + self.append_s_per_token * context_tokens

    def prefill(self, cached_tokens: int, tokens: int) -> float:
        """Prefill of a prompt's tokens from `cached_tokens` up to `tokens`.

        Between the two things that were measured: never less than a prefix hit, and never less
        than what these tokens add to an uncached prefill.
        """
        added = self.whole_prefill(tokens) - self.whole_prefill(cached_tokens)
        return added if cached_tokens <= 0 else max(added, self.append_floor(tokens))

    def prefill_batch(self, costs: Sequence[float]) -> float:
        """One prefill step over parts of several prompts, from what each would cost by itself:
        what a step costs at least is paid once. (Assumed; only lone prompts were measured.)"""
        if len(costs) == 1:
            return costs[0]
        fixed = self.append_floor_s
        beyond = sum(cost - fixed for cost in costs if cost > fixed)
        return beyond + min(fixed, max(costs))

    def transfer_occupancy(self, tokens: int) -> float:
        """How long moving KV keeps a link busy."""
        if tokens <= self.transfer_knee_tokens:
            return 0.0
        return self.transfer_s_per_token * tokens

    def transfer_latency(self, tokens: int) -> float:
        """What a move costs beside that, whether or not others share the link."""
        small = tokens <= self.transfer_knee_tokens
        return self.transfer_floor_s if small else self.transfer_base_s

    def transfer_s(self, tokens: int) -> float:
        """Moving KV over a link that nobody else uses."""
        return self.transfer_occupancy(tokens) + self.transfer_latency(tokens)


def run_length(num_steps: int, first_step_s: float, growth_s: float) -> float:
    """Seconds of `num_steps` decode steps, each `growth_s` longer than the one before."""
    return num_steps * (first_step_s + growth_s * (num_steps - 1) / 2)


def steps_until(seconds: float, first_step_s: float, growth_s: float) -> int:
    """The fewest decode steps, each `growth_s` longer than the one before, that last at least
    `seconds`; at least 1."""
    if seconds <= first_step_s:
        return 1
    if growth_s == 0:
        return math.ceil(seconds / first_step_s)
    b = first_step_s - growth_s / 2
    steps = max(1, math.ceil((math.sqrt(b * b + 2 * growth_s * seconds) - b) / growth_s))
    while steps > 1 and run_length(steps - 1, first_step_s, growth_s) >= seconds:
        steps -= 1
    while run_length(steps, first_step_s, growth_s) < seconds:
        steps += 1
    return steps


A40_QWEN3_0_6B = PerfModel(
    name="a40-qwen3-0.6b-eager",
    decode_step_s=12.27e-3,
    decode_s_per_request=24.1e-6,
    decode_s_per_kv_token=0.138e-6,
    prefill_tokens=(
        128, 256, 512, 1024, 2048, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 28672,
        32768, 40960, 49152, 57344, 65536,
    ),
    prefill_s=(
        0.0284, 0.0291, 0.0294, 0.0365, 0.0577, 0.1068, 0.1619, 0.2317, 0.3119, 0.3954, 0.6217,
        0.8969, 1.2139, 1.5621, 1.97, 2.9225, 4.0809, 5.4684, 6.8771,
    ),
    append_floor_s=14.5e-3,
    append_knee_tokens=12_000,
    append_base_s=5.6e-3,
    append_s_per_token=0.95e-6,
    transfer_floor_s=4.85e-3,
    transfer_knee_tokens=1024,
    transfer_base_s=5.27e-3,
    transfer_s_per_token=0.985e-6,
    sources={
        "decode": f"{PAPER}; linear fit of 101 cells of batch and context, R2 0.89",
        "prefill": f"{PAPER}; medians, uncached, 2,944 batched tokens a step",
        "append": f"{PAPER}; prefix-hit prefill by context length",
        "transfer": f"{PAPER}; KV move from prefiller to decoder on one node",
    },
)  # fmt: skip
"""With CUDA graphs, SGLang's default, the decode floor would be lower."""

A40_QWEN3_0_6B_200W = replace(
    A40_QWEN3_0_6B,
    name="a40-qwen3-0.6b-eager-200w",
    prefill_s=(
        0.0278, 0.0288, 0.0294, 0.0358, 0.0561, 0.1128, 0.1823, 0.2619, 0.3575, 0.4651, 0.7622,
        1.1739, 1.5668, 2.0992, 2.6577, 4.0352, 5.7272, 7.9489, 10.0083,
    ),
    sources={
        "decode": "taken as at 300 W: the same logs show +-3 % above 64 k KV tokens in the batch",
        "prefill": f"{PAPER.replace('300 W', '200 W')}; medians, uncached",
        "append": "the least an append costs: taken as at 300 W",
        "transfer": "taken as at 300 W",
    },
)  # fmt: skip
"""The same GPU capped at 200 W."""

PERF_MODELS: Mapping[str, PerfModel] = {
    model.name: model for model in (A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W)
}
