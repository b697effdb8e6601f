"""Seconds and watts of a GPU nobody has measured: a roofline, and power by how it is used.

Time is work over a share of the data sheet's rate, part by part, plus what the host takes:

    GEMMs       max(FLOP / (MFU x peak), weight bytes / (MBU x bandwidth))
    attention   max(FLOP / (MFU x peak), KV bytes / (MBU x bandwidth))

Power of a part is `min(cap, P0 + a x MBU + b x MFU)` in shares of the rated power, with the use
that part makes of memory and of arithmetic; between parts, while the host launches, it is P0. The
watts of a prefill or a step are the mean of these over its time. The coefficients are a prior from
whole serving systems (fitted on ML.ENERGY's H100 runs, normalised by rated power), known to be
25-30 % off on single devices; of its range the low end is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from conserve_sglang.profiles.hardware import Gpu, ModelShape
from conserve_sglang.profiles.profile import (
    DecodePoint,
    GraphMode,
    PrefillPoint,
    Profile,
    Provenance,
    TransferPoint,
)

MFU = 0.5
MBU = 0.7
P0_SHARE = 0.21
MBU_SHARE = 0.6
MFU_SHARE = 2.7
CAP_SHARE = 0.94
ALL_REDUCE_S = 20e-6
MEMORY_SHARE = 0.85
"""Of the memory, what a server takes for weights and KV."""

METHOD = (
    f"roofline from the data sheet: {MFU:g} of peak bf16 FLOP/s, {MBU:g} of memory bandwidth, plus"
    " host time"
)
POWER_METHOD = (
    f"min({CAP_SHARE:g}, {P0_SHARE:g} + {MBU_SHARE:g} MBU + {MFU_SHARE:g} MFU) of the rated power,"
    " part by part"
)
POWER_ERROR = "25 to 30 % either way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a server takes beside the GPU's work: per prefill, per decode step and per request.

    `hides_gpu`: in eager mode a step is launched while the GPU works on it, so it takes the longer
    of the two; a CUDA graph is launched at once and its host time comes on top.
    """

    prefill_s: float
    decode_s: float
    decode_s_per_request: float
    hides_gpu: bool

    @property
    def graph_mode(self) -> GraphMode:
        """As a profile names it."""
        return "eager" if self.hides_gpu else "cuda-graph"


def sglang_host(model: ModelShape) -> Host:
    """SGLang with CUDA graphs, assumed: prefill is launched kernel by kernel, 0.5 ms a layer (as
    the A40's eager steps take); a decode step loses 1 ms, and 5 us per request."""
    return Host(
        prefill_s=0.5e-3 * model.num_layers,
        decode_s=1e-3,
        decode_s_per_request=5e-6,
        hides_gpu=False,
    )


@dataclass(frozen=True, slots=True)
class Use:
    """Seconds of a GPU's work, and its mean power meanwhile in shares of the rated power."""

    seconds: float
    power: float

    def then(self, other: "Use") -> "Use":
        """One after the other."""
        seconds = self.seconds + other.seconds
        if seconds <= 0:
            return self
        joined = self.seconds * self.power + other.seconds * other.power
        return Use(seconds, joined / seconds)


def power_share(mbu: float, mfu: float) -> float:
    """Power in shares of the rated power, by the use of memory bandwidth and of arithmetic."""
    return min(CAP_SHARE, P0_SHARE + MBU_SHARE * mbu + MFU_SHARE * mfu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """One model on `tp` GPUs of a kind, whose servers have this host."""

    gpu: Gpu
    model: ModelShape
    host: Host
    tp: int = 1

    def prefill(self, new: int, cached: int = 0, batch: int = 1) -> Use:
        """Prefill of `batch` prompts of `new` tokens after `cached` cached ones."""
        model, tokens = self.model, batch * new
        gemm = self._part(
            flop=2.0 * model.layer_values * tokens + 2.0 * model.head_values * batch,
            moved=model.step_bytes,
        )
        pairs = batch * new * (cached + new / 2)
        attention = self._part(
            flop=4.0 * model.num_layers * model.num_heads * model.head_dim * pairs,
            moved=batch * (cached + new) * model.kv_bytes_per_token,
        )
        work = gemm.then(attention).then(self._all_reduce(tokens))
        return work.then(Use(self.host.prefill_s, P0_SHARE))

    def decode(self, batch: int, kv_tokens: float) -> Use:
        """One decode step."""
        model = self.model
        values = model.layer_values + model.head_values
        gemm = self._part(flop=2.0 * values * batch, moved=model.step_bytes)
        attention = self._part(
            flop=4.0 * model.num_layers * model.num_heads * model.head_dim * kv_tokens,
            moved=kv_tokens * model.kv_bytes_per_token,
        )
        work = gemm.then(attention).then(self._all_reduce(batch))
        host_s = self.host.decode_s + self.host.decode_s_per_request * batch
        waits = max(0.0, host_s - work.seconds) if self.host.hides_gpu else host_s
        return work.then(Use(waits, P0_SHARE))

    def transfer_s(self, tokens: int) -> float:
        """Moving KV between two GPUs of a host: 5 ms, and 0.7 of the link's rate."""
        moved = tokens * self.model.kv_bytes_per_token / self.tp
        return 5e-3 + moved / (0.7 * self.gpu.link_bytes_per_s)

    @property
    def kv_capacity_tokens(self) -> int:
        """KV tokens that fit beside the weights; 0 when these do not fit."""
        room = MEMORY_SHARE * self.gpu.memory_bytes * self.tp - self.model.weight_bytes
        return max(0, int(room / self.model.kv_bytes_per_token))

    def _part(self, flop: float, moved: float) -> Use:
        gpu = self.gpu
        compute_s = flop / self.tp / (MFU * gpu.peak_flop_per_s)
        memory_s = moved / self.tp / (MBU * gpu.memory_bytes_per_s)
        seconds = max(compute_s, memory_s)
        if seconds <= 0:
            return Use(0.0, P0_SHARE)
        return Use(seconds, power_share(MBU * memory_s / seconds, MFU * compute_s / seconds))

    def _all_reduce(self, tokens: int) -> Use:
        """Two all-reduces a layer between the GPUs of one model, in a ring."""
        if self.tp == 1:
            return Use(0.0, P0_SHARE)
        model = self.model
        moved = 2 * (self.tp - 1) / self.tp * tokens * model.hidden * model.bytes_per_value
        once = ALL_REDUCE_S + moved / (0.7 * self.gpu.link_bytes_per_s)
        return Use(2 * model.num_layers * once, P0_SHARE)


_NEW = (16, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576,
        32_768, 49_152, 65_536)  # fmt: skip
_CACHED = (0, 1024, 4096, 8192, 16_384, 32_768, 65_536)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
_CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_MOVED = (1, 256, 1024, 4096, 16_384, 65_536)
LONGEST = 65_536


def estimate(gpu: Gpu, model: ModelShape, *, tp: int = 1) -> Profile:
    """The profile of SGLang with CUDA graphs on a GPU nobody measured, as delivered (no cap)."""
    estimator = Estimator(gpu=gpu, model=model, host=sglang_host(model), tp=tp)
    idle_w = gpu.idle_w if gpu.idle_w is not None else P0_SHARE * gpu.tdp_w
    short = model.name.rsplit("/", 1)[-1].lower()
    return Profile(
        name=f"{gpu.name.lower()}-{short}" + (f"-tp{tp}" if tp > 1 else ""),
        gpu=gpu.name,
        model=model.name,
        dtype="bfloat16",
        engine="sglang",
        engine_version="any",
        graph_mode=estimator.host.graph_mode,
        tp=tp,
        power_cap_w=gpu.tdp_w,
        tdp_w=gpu.tdp_w,
        idle_w=round(idle_w, 1),
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_capacity_tokens=estimator.kv_capacity_tokens,
        chunk_tokens=8192,
        provenance=Provenance(
            kind="estimated",
            source=METHOD,
            error="unknown for this GPU; against published A40 times see bench/estimator.py",
        ),
        power_provenance=Provenance(kind="estimated", source=POWER_METHOD, error=POWER_ERROR),
        prefill=tuple(_prefill_points(estimator)),
        decode=tuple(_decode_points(estimator)),
        transfer=tuple(
            TransferPoint(tokens=tokens, seconds=_short(estimator.transfer_s(tokens)))
            for tokens in _MOVED
        ),
    )


def _prefill_points(estimator: Estimator) -> Iterator[PrefillPoint]:
    longest = min(LONGEST, estimator.kv_capacity_tokens)
    for batch in (1, 4):
        for cached in _CACHED:
            for new in _NEW:
                if batch * (cached + new) <= longest:
                    use = estimator.prefill(new, cached, batch)
                    yield PrefillPoint(
                        new_tokens=new,
                        cached_tokens=cached,
                        batch=batch,
                        seconds=_short(use.seconds),
                        watts=round(use.power * estimator.gpu.tdp_w, 1),
                    )


def _decode_points(estimator: Estimator) -> Iterator[DecodePoint]:
    for batch in _BATCHES:
        for context in _CONTEXTS:
            if batch * context <= estimator.kv_capacity_tokens:
                use = estimator.decode(batch, batch * context)
                yield DecodePoint(
                    batch=batch,
                    kv_tokens=batch * context,
                    step_s=_short(use.seconds),
                    watts=round(use.power * estimator.gpu.tdp_w, 1),
                )


def _short(seconds: float) -> float:
    return float(f"{seconds:.5g}")
