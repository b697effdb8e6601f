"""The A40 with Qwen3-0.6B as arXiv 2606.01839's profiling logs have it (Apache-2.0).

Medians of uncached prefill stand here as published; decode, prefix hits and KV moves as the lines
fitted to them. Power was not published: it is estimated.
"""

from collections.abc import Iterator

from conserve_sglang.profiles.estimator import (
    POWER_ERROR,
    POWER_METHOD,
    Estimator,
    Host,
    Use,
)
from conserve_sglang.profiles.hardware import GPUS, MODELS
from conserve_sglang.profiles.profile import (
    DecodePoint,
    PrefillPoint,
    Profile,
    Provenance,
    TransferPoint,
)

PAPER = "arXiv 2606.01839's published profiling logs (github.com/eicchen/conserve at 4ab277d)"
PREFILL_TOKENS = (
    128, 256, 512, 1024, 2048, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 28672,
    32768, 40960, 49152, 57344, 65536,
)  # fmt: skip
PREFILL_300W_S = (
    0.0284, 0.0291, 0.0294, 0.0365, 0.0577, 0.1068, 0.1619, 0.2317, 0.3119, 0.3954, 0.6217,
    0.8969, 1.2139, 1.5621, 1.97, 2.9225, 4.0809, 5.4684, 6.8771,
)  # fmt: skip
PREFILL_200W_S = (
    0.0278, 0.0288, 0.0294, 0.0358, 0.0561, 0.1128, 0.1823, 0.2619, 0.3575, 0.4651, 0.7622,
    1.1739, 1.5668, 2.0992, 2.6577, 4.0352, 5.7272, 7.9489, 10.0083,
)  # fmt: skip
DECODE_STEP_S, DECODE_S_PER_REQUEST, DECODE_S_PER_KV_TOKEN = 12.27e-3, 24.1e-6, 0.138e-6
HIT_FLOOR_S, HIT_KNEE_TOKENS, HIT_BASE_S, HIT_S_PER_TOKEN = 14.5e-3, 12_000, 5.6e-3, 0.95e-6
MOVE_FLOOR_S, MOVE_KNEE_TOKENS, MOVE_BASE_S, MOVE_S_PER_TOKEN = 4.85e-3, 1024, 5.27e-3, 0.985e-6

A40_HOST = Host(prefill_s=26e-3, decode_s=14.3e-3, decode_s_per_request=24.1e-6, hides_gpu=True)
"""vLLM 0.11 in eager mode on that machine: the fixed time of its shortest prefills (512 tokens and
less) and of steps with up to 8 requests and 4,096 KV tokens, and the slope by requests."""

_SOURCE = (
    f"{PAPER}, vLLM 0.11 in eager mode: prefill with nothing cached is the published median; a"
    " prefix hit takes 14.5 ms up to 12,000 tokens of context, then 5.6 ms + 0.95 us a token;"
    " prefill on a cached prefix is the larger of that and what it adds to an uncached prefill"
    " (assumed); a decode step is the published grid's linear fit, 12.27 ms + 24.1 us a request +"
    " 0.138 us a KV token (R2 0.89); a KV move takes 4.85 ms up to 1,024 tokens, then 5.27 ms +"
    " 0.985 us a token"
)
_AS_AT_300W = "; decode, prefix hits and moves as at 300 W (decode differs by 3 % at most there)"


def a40_qwen3_0_6b(cap_w: int = 300) -> Profile:
    """The profile at 300 or 200 W."""
    seconds = {300: PREFILL_300W_S, 200: PREFILL_200W_S}[cap_w]
    gpu, model = GPUS["A40"], MODELS["Qwen/Qwen3-0.6B"]
    estimator = Estimator(gpu=gpu, model=model, host=A40_HOST)

    def watts(use: Use) -> float:
        return round(min(use.power * gpu.tdp_w, cap_w), 1)

    return Profile(
        name=f"a40-qwen3-0.6b-{cap_w}w",
        gpu=gpu.name,
        model=model.name,
        dtype="bfloat16",
        engine="vllm",
        engine_version="0.11",
        graph_mode="eager",
        power_cap_w=float(cap_w),
        tdp_w=gpu.tdp_w,
        idle_w=gpu.idle_w,
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_capacity_tokens=308_448,
        chunk_tokens=2944,
        provenance=_provenance(cap_w),
        power_provenance=Provenance(
            kind="estimated", source=f"{POWER_METHOD}; idle: {PAPER}, 75-77 W", error=POWER_ERROR
        ),
        prefill=tuple(
            PrefillPoint(
                new_tokens=new,
                cached_tokens=cached,
                seconds=told,
                watts=watts(estimator.prefill(new, cached)),
            )
            for new, cached, told in _prefills(seconds)
        ),
        decode=tuple(
            DecodePoint(
                batch=batch,
                kv_tokens=tokens,
                step_s=round(_decode_s(batch, tokens), 12),
                watts=watts(estimator.decode(batch, tokens)),
            )
            for batch, tokens in _decodes()
        ),
        transfer=tuple(
            TransferPoint(tokens=tokens, seconds=round(_move_s(tokens), 12)) for tokens in _MOVED
        ),
    )


def _provenance(cap_w: int) -> Provenance:
    return Provenance(
        kind="published",
        source=_SOURCE + (_AS_AT_300W if cap_w != 300 else ""),
        machine={"gpu": "4 x NVIDIA A40", "power cap": f"{cap_w} W"},
    )


def uncached_s(tokens: int, seconds: tuple[float, ...]) -> float:
    """Prefill with nothing cached: straight lines between the published lengths."""
    if tokens <= PREFILL_TOKENS[0]:
        return seconds[0] if tokens > 0 else 0.0
    right = next(i for i, length in enumerate(PREFILL_TOKENS) if length >= tokens)
    low, high = PREFILL_TOKENS[right - 1], PREFILL_TOKENS[right]
    share = (tokens - low) / (high - low)
    return (1 - share) * seconds[right - 1] + share * seconds[right]


_NEW = (16, 67, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_CACHED = (512, 2048, 4096, 8192, HIT_KNEE_TOKENS - 16, HIT_KNEE_TOKENS - 15, 16_384, 24_576,
           32_768, 49_152, 65_520)  # fmt: skip
_MOVED = (1, MOVE_KNEE_TOKENS, MOVE_KNEE_TOKENS + 1, 8192, 65_536)


def _prefills(seconds: tuple[float, ...]) -> Iterator[tuple[int, int, float]]:
    """New tokens, cached tokens, seconds."""
    for tokens, told in zip(PREFILL_TOKENS, seconds, strict=True):
        yield tokens, 0, told
    for cached in _CACHED:
        for new in _NEW:
            context = cached + new
            if context <= PREFILL_TOKENS[-1]:
                added = uncached_s(context, seconds) - uncached_s(cached, seconds)
                yield new, cached, round(max(added, _hit_s(context)), 12)


def _decodes() -> Iterator[tuple[int, int]]:
    """Batch, KV tokens in all."""
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        for context in (128, 512, 2048, 8192, 16_384, 32_768):
            if batch * context <= 200_000:
                yield batch, batch * context


def _hit_s(context: int) -> float:
    if context <= HIT_KNEE_TOKENS:
        return HIT_FLOOR_S
    return HIT_BASE_S + HIT_S_PER_TOKEN * context


def _decode_s(batch: int, kv_tokens: int) -> float:
    return DECODE_STEP_S + DECODE_S_PER_REQUEST * batch + DECODE_S_PER_KV_TOKEN * kv_tokens


def _move_s(tokens: int) -> float:
    if tokens <= MOVE_KNEE_TOKENS:
        return MOVE_FLOOR_S
    return MOVE_BASE_S + MOVE_S_PER_TOKEN * tokens
