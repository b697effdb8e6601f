"""What a profile tells, and that it refuses to guess."""

from dataclasses import replace

import pytest

from conserve_sglang.core.errors import ConfigError, OutsideProfile, ProfileError
from tests.profiles.builders import ESTIMATED, MEASURED, a_profile


def test_times_and_watts_between_points() -> None:
    profile = a_profile()
    assert profile.prefill_s(500, 2000, 2) == pytest.approx(0.01 + 5e-3 + 2e-3 + 2e-3)
    assert profile.prefill_w(500) == pytest.approx(205)
    assert profile.decode_step_s(4, 4 * 500) == pytest.approx(0.01 + 4e-5 + 5e-4)
    assert profile.decode_w(4, 4 * 500) == pytest.approx(104)
    assert profile.transfer_s(5000) == pytest.approx(0.01)


def test_outside_its_points_it_says_what_is_outside_and_what_to_do() -> None:
    profile = a_profile()
    with pytest.raises(OutsideProfile, match=r"new tokens 5000 is outside 100 to 2000.*measure"):
        profile.prefill_s(5000)
    with pytest.raises(OutsideProfile, match=r"KV tokens per request 5000 is .* near batch 1"):
        profile.decode_step_s(1, 5000)
    with pytest.raises(OutsideProfile, match="batch 32"):
        profile.decode_w(32, 3200)
    with pytest.raises(OutsideProfile, match="transfer: tokens 20000"):
        profile.transfer_s(20_000)
    assert issubclass(OutsideProfile, ProfileError)
    assert issubclass(ProfileError, ConfigError)


def test_extrapolation_has_to_be_asked_for() -> None:
    profile = a_profile()
    assert profile.prefill_s(4000, extrapolate=True) == pytest.approx(0.051)
    assert profile.decode_step_s(32, 32 * 100, extrapolate=True) == pytest.approx(0.01042)


def test_without_watts_or_transfers_it_says_so() -> None:
    profile = a_profile()
    bare = replace(
        profile,
        prefill=tuple(replace(point, watts=None) for point in profile.prefill),
        transfer=(),
    )
    assert bare.prefill_w(500) is None
    assert not bare.has_watts
    assert profile.has_watts
    with pytest.raises(ProfileError, match="no transfer points"):
        bare.transfer_s(1)


def test_an_estimate_in_any_part_makes_it_an_estimate() -> None:
    assert a_profile().is_estimated
    assert not a_profile(power_provenance=MEASURED).is_estimated
    assert not a_profile(power_provenance=None).is_estimated
    assert a_profile(provenance=ESTIMATED, power_provenance=MEASURED).is_estimated


def test_points_of_a_linear_profile_are_told_from_each_other() -> None:
    told = a_profile().leave_one_out()
    for part in (told.prefill, told.prefill_watts, told.decode, told.decode_watts, told.transfer):
        assert part is not None
        assert part.num_edge < part.num_points
        assert part.worst_error == pytest.approx(0.0, abs=1e-9)
    assert a_profile(transfer=()).leave_one_out().transfer is None
