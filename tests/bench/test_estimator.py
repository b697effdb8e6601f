"""bench/estimator: what it compares, on kernels made up for it."""

import gzip
from pathlib import Path

import pytest

from bench.estimator import Compared, a40_cap, figures, floor, kernels, watts_told


def test_errors_are_relative_and_calibrated_points_are_held_apart() -> None:
    told = figures([Compared(1.1, 1.0), Compared(0.8, 1.0), Compared(1.5, 1.0, True)])
    assert (told["num"], told["num_calibrated"]) == (3, 1)
    assert told["median"] == pytest.approx(0.2)
    assert told["median_held_out"] == pytest.approx(0.15)
    assert told["worst"] == pytest.approx(0.5)
    assert told["bias"] == pytest.approx(0.1)


def test_kernels_are_read_with_their_use_of_memory_and_arithmetic(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "h200_bf16_gemm_latency_ms_power_w.csv.gz", "wt") as file:
        file.write("m,n,k,latency,power,power_limit\n")
        file.write("4096,4096,4096,1.0,600.0,700.0\n" * 2)
    path = tmp_path / "h200_bf16_generation_attention_latency_ms_power_w.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("batch_size,isl,num_heads,num_key_value_heads,head_dim,step,window_size,")
        file.write("latency,power\n8,1,32,8,128,1023,0,0.1,300.0\n8,1,32,8,128,9,128,0.1,300.0\n")
    gemm = list(kernels(tmp_path, "gemm"))
    assert gemm[0].mfu == pytest.approx(2 * 4096**3 / 1e-3 / 989e12)
    assert gemm[0].mbu == pytest.approx(3 * 2 * 4096**2 / 1e-3 / 4.8e12)
    (attention,) = kernels(tmp_path, "generation_attention")  # the one with a window is left out
    assert attention.mbu == pytest.approx(4 * 8 * 128 * (1024 * 8 + 32) / 1e-4 / 4.8e12)
    share = 0.21 + 0.6 * gemm[0].mbu + 2.7 * gemm[0].mfu
    assert watts_told(gemm)[0].told == pytest.approx(700 * share)
    assert [one.error for one in floor(gemm)] == [0.0]


def test_the_cap_rule_is_compared_without_calibration() -> None:
    told = figures(a40_cap())
    assert told["num_calibrated"] == 0
    assert told["median"] < 0.15
