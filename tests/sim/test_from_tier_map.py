"""Which profile a tier is played by."""

from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.policy import POLICIES
from conserve_sglang.sim import alone_tier, deployment_of, profiles_of
from conserve_sglang.tiermap import load_tier_map

MAP = load_tier_map(Path(__file__).parents[2] / "tier_maps" / "a40_capped.yaml")


def with_tier(name: str, **changes: object) -> TierMap:
    tiers = tuple(
        replace(tier, **changes) if tier.name == name else tier  # type: ignore[arg-type]
        for tier in MAP.tiers
    )
    return replace(MAP, tiers=tiers)


def test_a_profile_taken_under_the_cap_is_used_as_it_is() -> None:
    found, notes = profiles_of(MAP)
    assert {name: profile.name for name, profile in found.items()} == {
        "prefill": "a40-qwen3-0.6b-300w",
        "decode": "a40-qwen3-0.6b-200w",
    }
    assert notes == ()
    assert alone_tier(MAP) == "prefill"


def test_another_cap_or_a_clock_is_put_on_the_nearest_higher_one() -> None:
    found, _ = profiles_of(with_tier("decode", power_cap_w=250.0, sm_clock_mhz=1200))
    assert found["decode"].name == "a40-qwen3-0.6b-250w-1200mhz"
    assert found["decode"].provenance.kind == "estimated"
    found, _ = profiles_of(with_tier("decode", power_cap_w=150.0))
    assert found["decode"].name == "a40-qwen3-0.6b-150w"
    assert "derived from a40-qwen3-0.6b-200w" in found["decode"].provenance.source


def test_a_cap_nothing_is_known_of_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"tier decode: .* tells nothing of 400 W"):
        profiles_of(with_tier("decode", power_cap_w=400.0))


def test_an_unknown_gpu_is_played_as_the_published_one_and_said_to_be() -> None:
    found, notes = profiles_of(with_tier("decode", gpu="B300", power_cap_w=None))
    assert found["decode"].name == "a40-qwen3-0.6b-300w"
    assert notes == (
        "tier decode: no profile of B300 with Qwen/Qwen3-0.6B (tp 1);"
        " played as a40-qwen3-0.6b-300w",
    )


def test_shared_gpus_are_told_to_be_played_as_if_each_worker_had_its_own() -> None:
    _, notes = profiles_of(with_tier("decode", share_gpus=True))
    (note,) = notes
    assert "tier decode" in note
    assert "share_gpus is not simulated" in note


def test_a_pool_is_the_options_else_the_profiles() -> None:
    tier_map = with_tier("decode", gpu="L4", power_cap_w=None)
    choice = replace(MAP.policy, name=next(iter(POLICIES)), params={})
    profiles, _ = profiles_of(tier_map)
    for given, expected in ((None, 167_480), (50_000, 50_000)):
        deployment = deployment_of(tier_map, profiles, choice, given)
        pools = {w.spec.kv_capacity_tokens for w in deployment.workers if w.spec.tier == "decode"}
        assert pools == {expected}


def test_a_tiers_flags_say_how_its_workers_work() -> None:
    flags = {"prefill-decode-interval": 4, "chunked-prefill-size": 512, "max-running-requests": 8}
    tier_map = with_tier("decode", sglang_flags=flags)
    profiles, _ = profiles_of(tier_map)
    prefiller, *decoders = deployment_of(tier_map, profiles, MAP.policy).workers
    assert (prefiller.prefill_decode_interval, prefiller.keeps_prompts) == (0, True)
    for each in decoders:
        assert (each.prefill_decode_interval, each.chunk_tokens, each.max_running) == (4, 512, 8)
    forgetful = with_tier("prefill", sglang_flags={"disable-radix-cache": True})
    assert not deployment_of(forgetful, profiles, MAP.policy).workers[0].keeps_prompts
    for name, value in (("prefill-decode-interval", -1), ("max-running-requests", 0)):
        with pytest.raises(ConfigError, match=f"tier decode: {name}: {value} is no number from"):
            deployment_of(with_tier("decode", sglang_flags={name: value}), profiles, MAP.policy)
