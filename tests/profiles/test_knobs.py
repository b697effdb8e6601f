"""Caps and clocks: what they cost, what they save, and what is refused."""

from dataclasses import replace

import pytest

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.profiles import Profile
from conserve_sglang.profiles.knobs import with_knobs
from conserve_sglang.profiles.published import (
    PREFILL_200W_S,
    PREFILL_TOKENS,
    a40_qwen3_0_6b,
)
from tests.profiles.builders import a_profile

A40 = a40_qwen3_0_6b(300)


def test_a_cap_on_the_published_profile_is_near_what_was_published_under_it() -> None:
    capped = with_knobs(A40, power_cap_w=200)
    for tokens, seconds in zip(PREFILL_TOKENS, PREFILL_200W_S, strict=True):
        assert capped.prefill_s(tokens) == pytest.approx(seconds, rel=0.14)
    assert capped.name == "a40-qwen3-0.6b-200w"
    assert capped.provenance.kind == "estimated"
    assert "derived from a40-qwen3-0.6b-300w" in capped.provenance.source


def test_no_mean_exceeds_the_cap_and_work_below_it_is_untouched() -> None:
    capped = with_knobs(A40, power_cap_w=200)
    for before, after in zip(A40.prefill, capped.prefill, strict=True):
        assert before.watts is not None
        assert after.watts is not None
        assert after.watts <= 200.0001
        assert after.seconds >= before.seconds * 0.9999
        if before.watts <= 200:
            assert after.seconds == pytest.approx(before.seconds)
            assert after.watts == pytest.approx(before.watts)
        else:
            assert after.watts == pytest.approx(200)
    for step, slowed in zip(A40.decode, capped.decode, strict=True):
        assert slowed.step_s == step.step_s
        assert (slowed.watts or 0) <= 200.0001


def test_a_cap_below_what_decode_can_reach_stretches_it() -> None:
    capped = with_knobs(A40, power_cap_w=100)
    longest = max(range(len(A40.decode)), key=lambda number: A40.decode[number].watts or 0)
    assert capped.decode[longest].watts == 100
    assert capped.decode[longest].step_s > A40.decode[longest].step_s


def test_a_lower_clock_slows_prefill_and_saves_in_decode() -> None:
    slow = with_knobs(A40, sm_clock_mhz=870)  # half of the maximum
    assert slow.prefill_s(65_536) == pytest.approx(2 * A40.prefill_s(65_536), rel=0.02)
    assert slow.decode_step_s(32, 65_536) == A40.decode_step_s(32, 65_536)
    before, after = A40.decode_w(32, 65_536), slow.decode_w(32, 65_536)
    assert before is not None
    assert after is not None
    assert after - 63 == pytest.approx((before - 63) * (0.5 + 0.5 * 0.25))
    assert (slow.name, slow.sm_clock_mhz) == ("a40-qwen3-0.6b-870mhz", 870)
    assert with_knobs(A40) is A40


@pytest.mark.parametrize(
    ("profile", "cap_w", "clock_mhz", "message"),
    [
        (A40, 350, None, "was taken at 300 W, which tells nothing of 350 W"),
        (A40, 60, None, "60 W is less than it draws"),
        (A40, None, 300, "300 MHz is outside 696 to 1740"),
        (A40, None, 2000, "2000 MHz is outside"),
        (replace(A40, tdp_w=None), 200, None, "has no watts"),
        (replace(a_profile(), gpu="X1"), None, 1000, "nothing is known of a GPU 'X1'"),
    ],
)
def test_what_cannot_be_told_is_refused(
    profile: Profile, cap_w: float | None, clock_mhz: int | None, message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        with_knobs(profile, power_cap_w=cap_w, sm_clock_mhz=clock_mhz)
