"""Unit costs are what was measured, where it was measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.sim import A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W
from conserve_sglang.sim.perf_model import run_length, steps_until

SHARED = Path(__file__).parents[3] / "shared" / "data" / "conserve"


def test_prefill_is_interpolated_between_measured_lengths() -> None:
    perf = A40_QWEN3_0_6B
    assert perf.whole_prefill(16_384) == 0.6217
    assert perf.whole_prefill(3072) == pytest.approx((0.0577 + 0.1068) / 2)
    assert perf.whole_prefill(1) == perf.whole_prefill(128) == 0.0284
    assert perf.whole_prefill(131_072) == pytest.approx(4 * 6.8771)


def test_an_append_costs_at_least_a_prefix_hit_and_what_it_adds() -> None:
    perf = A40_QWEN3_0_6B
    assert perf.prefill(8000, 8067) == 14.5e-3
    assert perf.prefill(16_000, 16_067) == pytest.approx(5.6e-3 + 0.95e-6 * 16_067)
    assert perf.prefill(16_384, 20_480) == pytest.approx(0.8969 - 0.6217)


@pytest.mark.parametrize(("tokens", "seconds"), [(512, 4.85e-3), (10_000, 15.12e-3)])
def test_a_transfer_has_a_floor_and_a_slope(tokens: int, seconds: float) -> None:
    assert A40_QWEN3_0_6B.transfer_s(tokens) == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [0.001, 0.0123, 0.5, 7.7, 100.0])
def test_the_fewest_steps_that_last_so_long(seconds: float) -> None:
    steps = steps_until(seconds, 0.0123, 2e-6)
    assert run_length(steps, 0.0123, 2e-6) >= seconds
    assert steps == 1 or run_length(steps - 1, 0.0123, 2e-6) < seconds


def test_every_model_names_its_sources() -> None:
    for perf in (A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W):
        assert "published: arXiv 2606.01839" in perf.sources["times"]
        assert perf.sources["watts"].startswith("estimated: ")
        assert perf.is_estimated


def test_the_published_lines_come_back_from_the_profiles_points() -> None:
    perf = A40_QWEN3_0_6B
    assert perf.decode_step_s == pytest.approx(12.27e-3)
    assert perf.decode_s_per_request == pytest.approx(24.1e-6)
    assert perf.decode_s_per_kv_token == pytest.approx(0.138e-6)
    assert perf.append_share == 0
    assert perf.errors["decode"] == pytest.approx(0, abs=1e-9)


def test_a_prefill_table_must_not_fall() -> None:
    with pytest.raises(ValueError, match="must not fall"):
        replace(A40_QWEN3_0_6B, prefill_s=tuple(reversed(A40_QWEN3_0_6B.prefill_s)))
    with pytest.raises(ValueError, match="a time for each length"):
        replace(A40_QWEN3_0_6B, prefill_s=(1.0,))


def test_the_tables_are_the_published_ones() -> None:
    path = SHARED / "a40_qwen3-0.6b_prefill_cachemiss_300W_200W.csv"
    if not path.exists():
        pytest.skip("the published prefill times are not here")
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert tuple(int(row[0]) for row in rows) == A40_QWEN3_0_6B.prefill_tokens
    assert tuple(float(row[1]) for row in rows) == A40_QWEN3_0_6B.prefill_s
    assert tuple(float(row[2]) for row in rows) == A40_QWEN3_0_6B_200W.prefill_s
