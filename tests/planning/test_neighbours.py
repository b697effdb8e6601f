"""Fleets one move away, and how many GPUs a fleet needs more."""

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.neighbours import (
    Choice,
    Counts,
    Neighbours,
    num_short,
    shortage,
    shrunk,
)
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.request import Request
from tests.planning.builders import COLOCATED, CONSERVE, a_request, few_a40

VARIANTS = {one.name: one for one in (CONSERVE, COLOCATED)}


def config(request: Request, role: Role, cap_w: float | None = None) -> Config:
    (found,) = {
        one.config(role)
        for one in request.hardware
        if (one.tier, one.power_cap_w) == ("a40", cap_w)
    }
    return found


def apart(request: Request, prefill: int, decode: int) -> Counts:
    return {config(request, Role.PREFILL): prefill, config(request, Role.DECODE): decode}


def moves(
    request: Request, counts: Counts, most_short: int = 0, powered: bool = False
) -> list[Choice]:
    start = Choice(variant=CONSERVE, policy=CONSERVE.policy, counts=counts)
    return list(Neighbours(request, VARIANTS, powered).of(start, most_short))


def test_shortage_is_by_tier() -> None:
    request = a_request()
    assert shortage(request, apart(request, 1, 3)) == {}
    assert shortage(request, apart(request, 2, 5)) == {"a40": 3}
    assert num_short(request, apart(request, 2, 5)) == 3


def test_a_fleet_shrinks_in_proportion_and_keeps_every_role() -> None:
    request = few_a40(2)
    assert shrunk(request, apart(request, 4, 8), 4) == apart(request, 2, 4)
    assert shrunk(request, apart(request, 4, 8), 0) == apart(request, 1, 1)
    assert shrunk(few_a40(1), apart(request, 4, 8), 0) is None


def test_from_a_full_host_workers_change_roles_and_policies() -> None:
    request = few_a40(4)
    found = moves(request, apart(request, 2, 2))
    fleets = [one.counts for one in found if one.policy == CONSERVE.policy]
    assert fleets == [apart(request, 1, 3), apart(request, 3, 1)]
    same = [one.policy.name for one in found if one.counts == apart(request, 2, 2)]
    assert same == ["work-conserving", "conserve-pack"]
    assert {config(request, Role.MIXED): 4} in [one.counts for one in found]


def test_with_too_many_gpus_only_fewer_are_shown() -> None:
    request = few_a40(4)
    found = [one.counts for one in moves(request, apart(request, 2, 4))]
    assert found == [apart(request, 1, 4), apart(request, 2, 3)]


def test_the_last_worker_of_a_role_stays() -> None:
    request = few_a40(2)
    found = moves(request, apart(request, 1, 1), powered=True)
    roles = [{config.role for config in one.counts} for one in found]
    assert all(one in ({Role.PREFILL, Role.DECODE}, {Role.MIXED}) for one in roles)


def test_caps_come_down_only_where_watts_are_limited() -> None:
    request = few_a40(2, (None, 200.0))
    capped = config(request, Role.DECODE, 200.0)
    counts = {config(request, Role.PREFILL): 1, config(request, Role.DECODE): 1}
    lower = {config(request, Role.PREFILL): 1, capped: 1}
    assert lower in [one.counts for one in moves(request, counts, powered=True)]
    assert lower not in [one.counts for one in moves(request, counts)]
    assert counts in [one.counts for one in moves(request, lower)]
