"""How wrong is the estimator of GPUs nobody measured, in seconds and in watts?

Seconds: against the published A40 with Qwen3-0.6B, prefill at 300 and 200 W and the grid of decode
steps. Calibrated on are that server's host times alone, from the points marked so; the shares of
peak rates are round values of the literature's ranges, and the clock exponent of a cap is a round
value. All were settled with these points in sight: what is held out is held out of the host times.
Watts: against kernels measured on an H200; nothing is calibrated on them. `floor` is what the best
function of MBU and MFU could reach: the median of the other half of the kernels that use memory
and arithmetic as much. Not measured: whole servers, and any other GPU.

    python -m bench.estimator
"""

import argparse
import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import save
from conserve_sglang.profiles.estimator import Estimator, power_share
from conserve_sglang.profiles.hardware import GPUS, MODELS
from conserve_sglang.profiles.knobs import slowed_prefill, with_knobs
from conserve_sglang.profiles.profile import PrefillPoint
from conserve_sglang.profiles.published import (
    A40_HOST,
    PREFILL_200W_S,
    PREFILL_300W_S,
    PREFILL_TOKENS,
    a40_qwen3_0_6b,
)

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
GOAL = 0.15
SHORT_KERNEL_S = 15e-6


@dataclass(frozen=True, slots=True)
class Compared:
    """One point: what was told of it, what it was, and whether anything was calibrated on it."""

    told: float
    real: float
    is_calibrated: bool = False

    @property
    def error(self) -> float:
        """Signed, relative to what it was."""
        return self.told / self.real - 1


def a40_estimator() -> Estimator:
    """The estimator as it tells the published machine."""
    return Estimator(gpu=GPUS["A40"], model=MODELS["Qwen/Qwen3-0.6B"], host=A40_HOST)


def a40_prefill(cap_w: int) -> list[Compared]:
    """Prefill with nothing cached."""
    estimator, found = a40_estimator(), []
    tdp_w = estimator.gpu.tdp_w
    real = PREFILL_300W_S if cap_w == 300 else PREFILL_200W_S
    for tokens, seconds in zip(PREFILL_TOKENS, real, strict=True):
        use = estimator.prefill(tokens)
        point = PrefillPoint(new_tokens=tokens, seconds=use.seconds, watts=use.power * tdp_w)
        told = slowed_prefill(point, tdp_w, cap_w, 1.0).seconds
        found.append(Compared(told, seconds, tokens <= 512 and cap_w == 300))
    return found


def a40_cap() -> list[Compared]:
    """The rule for caps on the published 300 W profile, against the published 200 W one."""
    told = with_knobs(a40_qwen3_0_6b(300), power_cap_w=200)
    return [
        Compared(told.prefill_s(tokens), seconds)
        for tokens, seconds in zip(PREFILL_TOKENS, PREFILL_200W_S, strict=True)
    ]


def a40_decode(path: Path) -> list[Compared]:
    """The grid of decode steps at 300 W."""
    estimator, found = a40_estimator(), []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            batch, kv = int(row["batch"]), float(row["active_kv_mean_tokens"])
            told = estimator.decode(batch, kv).seconds
            real = 1e-3 * float(row["lat_p50_ms"])
            found.append(Compared(told, real, batch <= 8 and kv <= 4096))
    return found


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the H200: seconds, watts, and its use of memory and of arithmetic."""

    seconds: float
    watts: float
    mbu: float
    mfu: float


def kernels(folder: Path, kind: str) -> Iterator[Kernel]:
    """Kernels of a kind; attention with a window is left out."""
    gpu = GPUS["H200"]
    path = folder / f"h200_bf16_{kind}_latency_ms_power_w.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("window_size", "0") != "0":
                continue
            flop, moved = _work(kind, {k: int(v) for k, v in row.items() if v.isdigit()})
            seconds, watts = 1e-3 * float(row["latency"]), float(row["power"])
            if seconds > 0 and watts > 0:
                mbu = moved / seconds / gpu.memory_bytes_per_s
                yield Kernel(seconds, watts, mbu, flop / seconds / gpu.peak_flop_per_s)


def _work(kind: str, row: dict[str, int]) -> tuple[float, float]:
    """FLOP and bytes of a bf16 kernel."""
    if kind == "gemm":
        m, n, k = row["m"], row["n"], row["k"]
        return 2.0 * m * n * k, 2.0 * (m * k + k * n + m * n)
    batch, heads, size = row["batch_size"], row["num_heads"], row["head_dim"]
    kv_heads = row["num_key_value_heads"] or heads
    if kind == "context_attention":
        length = row["isl"]
        moved = 2.0 * batch * length * size * (2 * heads + 2 * kv_heads)
        return 2.0 * batch * heads * size * length**2, moved
    length = row["step"] + 1
    moved = 2.0 * batch * size * (2 * length * kv_heads + 2 * heads)
    return 4.0 * batch * heads * size * length, moved


def watts_told(found: Sequence[Kernel]) -> list[Compared]:
    """The power rule with the H200's rated power."""
    rated = GPUS["H200"].tdp_w
    return [Compared(rated * power_share(k.mbu, k.mfu), k.watts) for k in found]


def floor(found: Sequence[Kernel]) -> list[Compared]:
    """Every second kernel, told as the median of the others in its cell of MBU and MFU."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for kernel in found[::2]:
        cells[_cell(kernel)].append(kernel.watts)
    return [
        Compared(median(cells[_cell(kernel)]), kernel.watts)
        for kernel in found[1::2]
        if _cell(kernel) in cells
    ]


def _cell(kernel: Kernel) -> tuple[int, int]:
    return int(20 * kernel.mbu), int(20 * kernel.mfu)


def figures(compared: Sequence[Compared]) -> dict[str, Any]:
    """Errors of some points, and of those nothing was calibrated on."""
    errors = sorted(abs(one.error) for one in compared)
    held_out = [abs(one.error) for one in compared if not one.is_calibrated]
    return {
        "num": len(errors),
        "num_calibrated": len(errors) - len(held_out),
        "median": round(median(errors), 4),
        "median_held_out": round(median(held_out), 4),
        "p95": round(errors[int(0.95 * (len(errors) - 1))], 4),
        "worst": round(errors[-1], 4),
        "bias": round(median(one.error for one in compared), 4),
    }


def seconds_report() -> dict[str, Any]:
    """Every comparison of times there is data for."""
    parts = {
        "A40 prefill, 300 W": a40_prefill(300),
        "A40 prefill, 200 W": a40_prefill(200),
    }
    grid = SHARED / "conserve" / "a40_qwen3-0.6b_decode_grid_300W.csv"
    if grid.exists():
        parts["A40 decode step, 300 W"] = a40_decode(grid)
    else:
        print(f"skipped: decode steps, {grid} is not here")
    together = [one for part in parts.values() for one in part]
    report = {name: figures(part) for name, part in parts.items()}
    report["all A40 points"] = figures(together)
    report["cap rule alone: 200 W from the published 300 W"] = figures(a40_cap())
    return report


def watts_report() -> dict[str, Any]:
    """Every comparison of watts there is data for."""
    folder = SHARED / "aiconfigurator"
    if not folder.exists():
        print(f"skipped: watts of H200 kernels, {folder} is not here")
        return {}
    report: dict[str, Any] = {}
    whole: list[Kernel] = []
    for kind in ("gemm", "context_attention", "generation_attention"):
        found = list(kernels(folder, kind))
        whole += found
        longer = [kernel for kernel in found if kernel.seconds >= SHORT_KERNEL_S]
        report[f"H200 {kind}, 15 us and longer"] = figures(watts_told(longer)) | {
            "floor": figures(floor(longer))["median"]
        }
    longer = [kernel for kernel in whole if kernel.seconds >= SHORT_KERNEL_S]
    report["all H200 kernels, 15 us and longer"] = figures(watts_told(longer))
    report["all H200 kernels, the shortest too"] = figures(watts_told(whole))
    return report


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    record = {"seconds": seconds_report(), "watts": watts_report()}
    for what, report in record.items():
        print(f"{what}: median error (held out), p95, worst, bias; goal {GOAL:.0%} at the median")
        for name, row in report.items():
            extra = f", floor {row['floor']:.1%}" if "floor" in row else ""
            print(
                f"  {name:48} {row['median']:6.1%} ({row['median_held_out']:.1%})"
                f" {row['p95']:6.1%} {row['worst']:6.1%} {row['bias']:+6.1%}"
                f"  of {row['num']:,}{extra}"
            )
    if not options.no_save:
        print(save("estimator", {"goal": GOAL, **record}))


if __name__ == "__main__":
    main()
