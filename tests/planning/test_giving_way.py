"""What would have to give way is enough in the simulator, and hardly less would be."""

from dataclasses import replace
from functools import cache

import pytest

from conserve_sglang.planning import Infeasible, Objective, Plan, Request, make_plan
from conserve_sglang.planning.diagnosis import Change, Remedy, least
from conserve_sglang.planning.giving_way import GivingWay, fits, smallest
from conserve_sglang.planning.inventory import Host
from conserve_sglang.planning.plan import is_within
from conserve_sglang.planning.planner import Bench
from conserve_sglang.planning.request import Targets
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.shortlist import problems_of, shortlist
from tests.planning.builders import a_request

TARGETS = {Limit.TTFET: "ttfet_s", Limit.TBT: "tbt_s", Limit.E2E: "e2e_s"}
REQUESTS = {
    "e2e": a_request(targets=Targets(e2e_s=8.0)),
    "load": a_request(rate_per_s=4.0),
    "two": a_request(targets=Targets(ttfet_s=8.0, tbt_s=0.004), power_budget_w=120.0),
    "most load": a_request(objective=Objective.LOAD, targets=Targets(ttfet_s=8.0)),
}


@cache
def refused(name: str) -> Infeasible:
    plan = make_plan(REQUESTS[name])
    assert isinstance(plan, Infeasible)
    return plan


def eased(request: Request, remedy: Remedy) -> Request:
    """With the change made, as far as it is printed."""
    for change in remedy:
        if change.limit is Limit.GPUS:
            num = round(change.needed - change.given)
            tiers = tuple(
                replace(tier, hosts=(*tier.hosts, Host(name="new", gpu_ids=tuple(range(num)))))
                if tier.name == change.tier
                else tier
                for tier in request.inventory.tiers
            )
            request = replace(request, inventory=replace(request.inventory, tiers=tiers))
        elif change.limit is Limit.LOAD:
            request = replace(request, load=replace(request.load, rate_per_s=change.enough))
        elif change.limit is Limit.PEAK_W:
            request = replace(request, power_budget_w=change.enough)
        else:
            target = {TARGETS[change.limit]: change.enough}
            request = replace(request, targets=replace(request.targets, **target))
    return request


@pytest.mark.parametrize("name", ["e2e", "load", "most load"])
def test_with_the_smallest_change_there_is_a_plan(name: str) -> None:
    remedies = refused(name).remedies
    assert remedies
    plan = make_plan(eased(REQUESTS[name], remedies[0]))
    assert isinstance(plan, Plan)
    assert is_within(plan.request, plan.chosen)
    assert fits(plan.request, plan.chosen)


def test_with_much_less_of_it_there_is_none() -> None:
    (change,) = refused("e2e").remedies[0]
    less = replace(change, needed=change.given + (change.needed - change.given) * 0.8)
    assert isinstance(make_plan(eased(REQUESTS["e2e"], (less,))), Infeasible)


def test_a_fleet_that_the_approximations_rule_out_may_do_in_the_simulator() -> None:
    request = a_request(targets=Targets(ttfet_s=8.0))
    thought = least(problems_of(request), frozenset({Limit.TTFET}))
    assert thought is not None
    tried = GivingWay(request, problems_of(request), Bench(request)).tried()
    (needed,) = (change.needed for change in tried.remedies[0])
    assert needed < thought.remedy[0].needed
    between = replace(request, targets=Targets(ttfet_s=(needed + thought.remedy[0].needed) / 2))
    assert not shortlist(between).candidates
    rescued = make_plan(between)
    assert isinstance(rescued, Plan)
    assert rescued.is_rescued
    assert is_within(between, rescued.chosen)
    assert "nothing keeps all limits" in rescued.proven


def test_limits_that_only_help_together_are_told_together() -> None:
    (first, *_) = refused("two").remedies
    assert len({change.limit for change in first}) > 1


def test_the_nearest_fleet_fits_the_gpus_there_are() -> None:
    for name, request in list(REQUESTS.items())[:2]:
        nearest = refused(name).nearest
        assert nearest is not None, name
        assert fits(request, nearest)
        assert not is_within(request, nearest)
        assert "the nearest that was simulated has" in refused(name).reason


def a_change(limit: Limit, needed: float) -> Change:
    return Change(limit=limit, tier="", given=100.0, needed=needed, relative=needed / 100 - 1)


def test_a_change_of_more_limits_that_is_larger_too_is_not_told() -> None:
    ttfet, power = a_change(Limit.TTFET, 120.0), a_change(Limit.PEAK_W, 110.0)
    more = a_change(Limit.TTFET, 130.0)
    assert smallest([(ttfet, power), (more,), (ttfet,)]) == ((ttfet,),)
    assert smallest([(more,), (a_change(Limit.TTFET, 101.0), power)])[-1] == (more,)


@pytest.mark.parametrize(
    ("limit", "needed", "enough"),
    [
        (Limit.TTFET, 23.36101, 23.37),
        (Limit.TTFET, 23.36, 23.36),
        (Limit.TBT, 0.0012340001, 0.001235),
        (Limit.PEAK_W, 266.0, 266.0),
        (Limit.PEAK_W, 12345.6, 12350.0),
        (Limit.LOAD, 0.99558, 0.9955),
    ],
)
def test_what_is_printed_is_enough(limit: Limit, needed: float, enough: float) -> None:
    change = a_change(limit, needed)
    assert change.enough == pytest.approx(enough, rel=1e-9)
    assert f"{enough:.4g}" in change.text
