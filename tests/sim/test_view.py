"""The simulator's unit costs are the profile's, as near as a closed form can be."""

from dataclasses import replace
from statistics import median

import pytest

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import Profile, shipped_profile, shipped_profiles
from conserve_sglang.sim import perf_model_of
from tests.profiles.builders import a_profile

SMOOTH = [
    name for name in shipped_profiles() if shipped_profile(name).provenance.kind != "measured"
]
"""Those that were computed or fitted; what is measured has noise that no closed form follows."""


@pytest.mark.parametrize("name", SMOOTH)
def test_a_shipped_profiles_points_are_met(name: str) -> None:
    profile = shipped_profile(name)
    perf = perf_model_of(profile)
    for point in profile.prefill:
        if point.batch == 1 and point.cached_tokens == 0:
            cost = perf.prefill_cost(0, point.new_tokens)
            assert cost.seconds == pytest.approx(point.seconds)
            assert cost.joules == pytest.approx(point.seconds * (point.watts or 0) * profile.tp)
    for moved in profile.transfer:
        assert perf.transfer_s(moved.tokens) == pytest.approx(moved.seconds)
    assert perf.errors["decode"] < 0.05
    assert perf.errors["append prefill"] < 0.05
    assert perf.is_estimated


@pytest.mark.parametrize("name", SMOOTH)
def test_joules_are_near_watts_times_seconds(name: str) -> None:
    profile = shipped_profile(name)
    perf = perf_model_of(profile)
    power = perf.power
    assert power is not None
    appends = [p for p in profile.prefill if p.batch == 1 and p.cached_tokens > 0]
    of_appends = median(
        abs(
            perf.prefill_cost(p.cached_tokens, p.cached_tokens + p.new_tokens).joules
            / (p.seconds * (p.watts or 0) * profile.tp)
            - 1
        )
        for p in appends
    )
    of_steps = median(
        abs(
            (
                power.decode_step_j
                + power.decode_j_per_request * p.batch
                + power.decode_j_per_kv_token * p.kv_tokens
            )
            / (p.step_s * (p.watts or 0) * profile.tp)
            - 1
        )
        for p in profile.decode
    )
    assert of_appends < 0.15
    assert of_steps < 0.1


def test_all_gpus_of_a_worker_draw() -> None:
    one, two = (perf_model_of(a_profile(tp=tp)).power for tp in (1, 2))
    assert one is not None
    assert two is not None
    assert two.idle_w == 2 * one.idle_w
    assert two.prefill_j == tuple(2 * joules for joules in one.prefill_j)
    assert two.decode_j_per_kv_token == pytest.approx(2 * one.decode_j_per_kv_token)


def without_watts(profile: Profile) -> Profile:
    return replace(profile, decode=tuple(replace(p, watts=None) for p in profile.decode))


def test_without_watts_of_all_points_there_is_no_power() -> None:
    assert perf_model_of(without_watts(a_profile())).power is None
    assert perf_model_of(a_profile(idle_w=None)).power is None
    assert perf_model_of(without_watts(a_profile())).prefill_cost(0, 1000).joules == 0


def test_a_profile_may_lack_appends_and_moves_but_not_uncached_prefill() -> None:
    profile = a_profile(transfer=())
    bare = replace(profile, prefill=tuple(p for p in profile.prefill if p.cached_tokens == 0))
    perf = perf_model_of(bare)
    assert perf.prefill(1000, 1001) == perf.append_floor(1001) == perf.prefill_s[0]
    assert perf.transfer_s(100) == 5e-3
    with pytest.raises(ProfileError, match="needs prefill points of a lone prompt"):
        perf_model_of(replace(profile, prefill=profile.prefill[3:9]))


def test_times_that_fall_with_the_length_are_raised_to_the_one_before() -> None:
    profile = a_profile()
    noisy = tuple(
        replace(p, seconds=0.001) if (p.batch, p.cached_tokens, p.new_tokens) == (1, 0, 1000) else p
        for p in profile.prefill
    )
    perf = perf_model_of(replace(profile, prefill=noisy))
    assert perf.prefill_s[1] == perf.prefill_s[0] < perf.prefill_s[2]


@pytest.mark.parametrize("name", sorted(set(shipped_profiles()) - set(SMOOTH)))
def test_a_measured_profile_is_played_with_its_error_said(name: str) -> None:
    profile = shipped_profile(name)
    perf = perf_model_of(profile)
    assert 0 < perf.decode_step(1, 1024) < 1
    assert perf.errors["decode"] > 0
    least = min(p.seconds for p in profile.prefill if p.batch == 1 and p.cached_tokens == 0)
    assert perf.prefill_cost(0, 16).seconds >= least
