"""What is shipped is what is computed, and says what it is."""

import pytest

from conserve_sglang.profiles import Profile, load_profile, shipped_folder, shipped_profiles
from conserve_sglang.profiles.published import PREFILL_300W_S, PREFILL_TOKENS, a40_qwen3_0_6b
from conserve_sglang.profiles.shipping import ESTIMATED, computed_profiles

COMPUTED = {profile.name: profile for profile in computed_profiles()}


@pytest.mark.parametrize("profile", COMPUTED.values(), ids=lambda profile: profile.name)
def test_a_computed_profiles_file_is_fresh(profile: Profile) -> None:
    """Else: python -m conserve_sglang.profiles.shipping"""
    assert load_profile(shipped_folder() / f"{profile.name}.yaml") == profile


def test_all_promised_gpus_and_models_are_shipped() -> None:
    names = set(shipped_profiles())
    assert {"a40-qwen3-0.6b-300w", "a40-qwen3-0.6b-200w"} <= names
    for gpu in ESTIMATED:
        assert {f"{gpu.lower()}-qwen3-0.6b", f"{gpu.lower()}-qwen3-8b"} <= names


def test_the_published_profile_has_the_published_points() -> None:
    profile = a40_qwen3_0_6b(300)
    for tokens, seconds in zip(PREFILL_TOKENS, PREFILL_300W_S, strict=True):
        assert profile.prefill_s(tokens) == seconds
    assert profile.prefill_s(67, 4096) == pytest.approx(14.5e-3)
    assert profile.decode_step_s(8, 8 * 2048) == pytest.approx(
        12.27e-3 + 8 * 24.1e-6 + 8 * 2048 * 0.138e-6
    )
    assert profile.transfer_s(8192) == pytest.approx(5.27e-3 + 8192 * 0.985e-6)
    assert profile.provenance.kind == "published"
    assert profile.power_provenance is not None
    assert profile.power_provenance.kind == "estimated"
