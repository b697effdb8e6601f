"""The estimator against arithmetic done by hand, and against what was published."""

from dataclasses import replace
from statistics import median

import pytest

from bench.estimator import a40_prefill
from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import Profile
from conserve_sglang.profiles.estimator import Estimator, Host, estimate, power_share, sglang_host
from conserve_sglang.profiles.hardware import GPUS, MODELS, gpu_named

SMALL, LARGE = MODELS["Qwen/Qwen3-0.6B"], MODELS["Qwen/Qwen3-8B"]
NO_HOST = Host(prefill_s=0.0, decode_s=0.0, decode_s_per_request=0.0, hides_gpu=False)


def test_a_models_sizes_are_its_makers() -> None:
    assert SMALL.kv_bytes_per_token == 114_688
    assert LARGE.kv_bytes_per_token == 147_456
    assert SMALL.weight_bytes / 2 == pytest.approx(0.596e9, rel=0.01)
    assert LARGE.weight_bytes / 2 == pytest.approx(8.19e9, rel=0.01)


def test_a_decode_step_of_one_is_reading_the_weights() -> None:
    use = Estimator(gpu=GPUS["H100"], model=LARGE, host=NO_HOST).decode(1, 1)
    assert use.seconds == pytest.approx(LARGE.step_bytes / (0.7 * 3.35e12), rel=1e-3)
    # 0.7 of the bandwidth, and hardly any arithmetic
    assert use.power == pytest.approx(0.21 + 0.6 * 0.7, abs=0.02)


def test_a_long_prefill_is_arithmetic_at_the_most_power() -> None:
    use = Estimator(gpu=GPUS["A100"], model=LARGE, host=NO_HOST).prefill(8192)
    flop = 2 * LARGE.layer_values * 8192 + 2 * 36 * 32 * 128 * 8192**2
    assert use.seconds == pytest.approx(flop / (0.5 * 312e12), rel=1e-3)
    assert use.power == pytest.approx(0.94)


def test_power_is_capped_and_grows_with_use() -> None:
    assert power_share(0, 0) == 0.21
    assert power_share(0.5, 0.1) == pytest.approx(0.21 + 0.3 + 0.27)
    assert power_share(0.9, 0.9) == 0.94


def test_in_eager_mode_the_host_hides_the_gpu_and_waits_at_low_power() -> None:
    host = Host(prefill_s=0.0, decode_s=0.1, decode_s_per_request=0.0, hides_gpu=True)
    use = Estimator(gpu=GPUS["H100"], model=LARGE, host=host).decode(1, 1)
    assert use.seconds == pytest.approx(0.1)
    assert 0.21 < use.power < 0.3
    graph = Estimator(gpu=GPUS["H100"], model=LARGE, host=replace(host, hides_gpu=False))
    assert graph.decode(1, 1).seconds == pytest.approx(0.1 + 0.00697, rel=0.01)


def test_two_gpus_take_half_the_work_each_and_pay_for_talking() -> None:
    host = sglang_host(LARGE)
    one = Estimator(gpu=GPUS["H100"], model=LARGE, host=host)
    two = Estimator(gpu=GPUS["H100"], model=LARGE, host=host, tp=2)
    assert one.prefill(8192).seconds / 2 < two.prefill(8192).seconds < one.prefill(8192).seconds
    # the host's time and the all-reduces stay
    assert two.decode(1, 512).seconds > one.decode(1, 512).seconds / 2
    assert two.kv_capacity_tokens > 2 * one.kv_capacity_tokens


def test_an_estimated_profile_says_so_and_covers_its_capacity() -> None:
    profile = estimate(GPUS["L4"], SMALL)
    assert isinstance(profile, Profile)
    assert profile.is_estimated
    assert profile.provenance.kind == "estimated"
    assert profile.power_provenance is not None
    assert profile.power_provenance.error == "25 to 30 % either way"
    assert profile.has_watts
    assert max(point.kv_tokens for point in profile.decode) <= (profile.kv_capacity_tokens or 0)
    assert all(0.2 * 72 < (point.watts or 0) <= 72 for point in profile.prefill)


@pytest.mark.parametrize("cap_w", [300, 200])
def test_the_published_a40_prefills_are_told_within_the_goal(cap_w: int) -> None:
    errors = [abs(one.error) for one in a40_prefill(cap_w) if not one.is_calibrated]
    assert len(errors) >= 16
    assert median(errors) < 0.15


def test_unknown_hardware_is_answered_with_the_known() -> None:
    assert gpu_named("l40s") is GPUS["L40S"]
    with pytest.raises(ProfileError, match="GPU 'B300'; known: A40, L4"):
        gpu_named("B300")
