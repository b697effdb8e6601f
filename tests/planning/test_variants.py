"""Which policies a planned fleet is tried with."""

import pytest

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.variants import PD, policies_for
from conserve_sglang.policy.registry import make_served_policy

MIXED = Variant(
    policy=PolicyChoice(name="colocated", params={}),
    roles=frozenset({Role.MIXED}),
    max_local_append_tokens=None,
    kept_gap_s=None,
)
APART = Variant(
    policy=PolicyChoice(name="conserve", params={"max_local_append_tokens": 512}),
    roles=PD,
    max_local_append_tokens=512,
    kept_gap_s=None,
)


@pytest.mark.parametrize("variant", [MIXED, APART], ids=["mixed", "apart"])
def test_a_fleet_is_tried_with_its_own_policy_first_and_with_ours(variant: Variant) -> None:
    first, *others = policies_for(variant, 0.05)
    assert first == variant.policy
    assert "work-conserving" in {each.name for each in others}
    for choice in (first, *others):
        make_served_policy(choice)
