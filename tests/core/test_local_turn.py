"""The mark of a local turn and the refusal survive their journey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.core.local_turn import LocalLimits, Refusal, RefusalReason

counts = st.integers(min_value=0, max_value=999_999_999)


@given(counts, counts)
def test_limits_round_trip(max_uncached: int, min_cached: int) -> None:
    limits = LocalLimits(max_uncached=max_uncached, min_cached=min_cached)
    assert LocalLimits.from_routing_key(limits.to_routing_key()) == limits


@pytest.mark.parametrize("key", [None, "", "alice", "conserve-local", "conserve-local max=1"])
def test_other_routing_keys_are_no_mark(key: str | None) -> None:
    assert LocalLimits.from_routing_key(key) is None


@pytest.mark.parametrize(
    ("prompt", "cached", "reason"),
    [
        (1000, 900, None),
        (1000, 899, RefusalReason.PREFIX_MISSING),
        (1401, 900, RefusalReason.APPEND_TOO_LARGE),
        (1400, 900, None),
    ],
)
def test_refusals(prompt: int, cached: int, reason: RefusalReason | None) -> None:
    limits = LocalLimits(max_uncached=500, min_cached=900)
    refusal = limits.refusal(prompt_tokens=prompt, cached_tokens=cached)
    assert (refusal.reason if refusal else None) is reason


@given(st.sampled_from(RefusalReason), counts, counts)
def test_refusal_is_found_inside_an_error_body(
    reason: RefusalReason, cached: int, uncached: int
) -> None:
    refusal = Refusal(reason=reason, cached_tokens=cached, uncached_tokens=uncached)
    body = f'data: {{"error": {{"message": "{refusal.to_message()}"}}}}'
    assert Refusal.from_message(body) == refusal


def test_other_errors_are_no_refusal() -> None:
    assert Refusal.from_message('{"message": "context too long"}') is None
    assert Refusal.from_message("conserve-refused reason=other cached=1 uncached=2") is None
