"""What would have to give way is enough in the simulator, and less would not be."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Infeasible, Objective, Option, Plan, Request, make_plan, score
from conserve_sglang.planning import giving_way as module
from conserve_sglang.planning.diagnosis import least
from conserve_sglang.planning.giving_way import Given, GivingWay, fits
from conserve_sglang.planning.inventory import Host
from conserve_sglang.planning.neighbours import Counts
from conserve_sglang.planning.plan import excess_of, is_within
from conserve_sglang.planning.planner import Bench
from conserve_sglang.planning.remedy import STEP, Remedy, Tried
from conserve_sglang.planning.request import Targets
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.shortlist import problems_of, shortlist
from conserve_sglang.planning.variants import policies_for
from tests.planning.builders import COLOCATED, CONSERVE, few_a40

TARGETS = {Limit.TTFET: "ttfet_s", Limit.TBT: "tbt_s", Limit.E2E: "e2e_s"}
BOTH_CAPS = (None, 200.0)
REQUESTS = {
    "e2e": few_a40(2, targets=Targets(e2e_s=8.0)),
    "load": few_a40(1, rate_per_s=1.6, targets=Targets(ttfet_s=40.0, tbt_s=0.05)),
    "two": few_a40(2, BOTH_CAPS, targets=Targets(ttfet_s=8.0, tbt_s=0.02), power_budget_w=150.0),
    "most load": few_a40(2, objective=Objective.LOAD, targets=Targets(ttfet_s=8.0)),
}


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held against each other is simulated alike: fewer conversations will do."""
    monkeypatch.setattr(score, "FEWEST", 120)


@cache
def refused(name: str) -> Infeasible:
    plan = make_plan(REQUESTS[name])
    assert isinstance(plan, Infeasible)
    return plan


@cache
def sought(name: str) -> Given:
    """What short runs find."""
    request = REQUESTS[name]
    return GivingWay(request, problems_of(request), Bench(request)).tried()


def the_remedy(name: str, *limits: Limit) -> Remedy:
    """The one that changes these limits alone."""
    (found,) = (
        remedy
        for remedy in sought(name).remedies
        if {change.limit for change in remedy.changes} == set(limits)
    )
    return found


def eased(request: Request, remedy: Remedy) -> Request:
    """With the change made, as far as it is printed."""
    for change in remedy.changes:
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


def all_fleets(request: Request, num_gpus: int) -> Iterator[Counts]:
    """Every number of workers of one tier's GPUs, in roles apart and in one."""
    (hardware,) = request.hardware
    prefill, decode, mixed = (hardware.config(role) for role in Role)
    assert (prefill.role, decode.role, mixed.role) == (Role.PREFILL, Role.DECODE, Role.MIXED)
    for used in range(1, num_gpus + 1):
        yield {mixed: used}
        for num in range(1, used):
            yield {prefill: num, decode: used - num}


def every_option(request: Request, num_gpus: int, rate_per_s: float) -> Iterator[Option]:
    """All of them under every policy, simulated."""
    bench = Bench(request)
    for counts in all_fleets(request, num_gpus):
        is_mixed = any(config.role is Role.MIXED for config in counts)
        variant = COLOCATED if is_mixed else CONSERVE
        for policy in policies_for(variant, request.targets.tbt_s):
            yield bench.played(variant.name, policy, counts, rate_per_s)


@pytest.mark.parametrize("name", ["e2e", "load", "most load"])
def test_with_the_smallest_change_there_is_a_plan(name: str) -> None:
    remedies = refused(name).remedies
    assert remedies
    plan = make_plan(eased(REQUESTS[name], remedies[0]))
    assert isinstance(plan, Plan)
    assert is_within(plan.request, plan.chosen)
    assert fits(plan.request, plan.chosen)


def test_with_a_gpu_fewer_no_fleet_of_all_would_do() -> None:
    remedy, request = the_remedy("load", Limit.GPUS), REQUESTS["load"]
    (change,) = remedy.changes
    assert (change.tier, change.given) == ("a40", 1)
    assert change.needed >= 3
    fewer = list(every_option(request, round(change.needed) - 1, request.load.rate_per_s))
    assert len(fewer) >= 9
    assert not [option for option in fewer if is_within(request, option)]
    assert remedy.proof is not None
    assert remedy.proof.tried is Tried.ALL
    assert "1 GPU fewer was tried and fails, on every fleet within reach" in remedy.evidence


def test_with_a_per_cent_more_load_no_fleet_of_all_would_do() -> None:
    remedy, request = the_remedy("load", Limit.LOAD), REQUESTS["load"]
    (change,) = remedy.changes
    rate = change.needed * (1 + STEP)
    for option in every_option(request, 1, rate):
        assert not is_within(request, option)
    carried = every_option(request, 1, change.needed)
    assert any(is_within(request, option) for option in carried)


def test_no_fleet_of_all_would_do_with_a_per_cent_less_of_a_target() -> None:
    remedy, request = the_remedy("e2e", Limit.E2E), REQUESTS["e2e"]
    (change,) = remedy.changes
    values = [option.score.e2e_s for option in every_option(request, 2, request.load.rate_per_s)]
    assert change.needed in values
    assert min(values) > change.needed * (1 - STEP)


def test_where_the_bound_is_reached_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    request = REQUESTS["load"]
    monkeypatch.setattr(module, "MOST_PLAYED", 1)
    (first, *_) = GivingWay(request, problems_of(request), Bench(request)).tried().remedies
    assert first.proof is not None
    assert (first.proof.tried, first.proof.most) == (Tried.PART, 1)
    assert "enough; not shown to be the smallest: the bound of 1 simulated" in first.evidence


def test_a_fleet_that_the_approximations_rule_out_may_do_in_the_simulator() -> None:
    request = few_a40(2, targets=Targets(tbt_s=0.004))
    thought = least(problems_of(request), frozenset({Limit.TBT}))
    assert thought is not None
    plan = make_plan(request, is_brief=True)
    assert isinstance(plan, Infeasible)
    (change,) = plan.remedies[0].changes
    assert change.enough < thought.changes[0].needed
    between = replace(
        request, targets=Targets(tbt_s=(change.enough + thought.changes[0].needed) / 2)
    )
    assert not shortlist(between).candidates
    rescued = make_plan(between, is_brief=True)
    assert isinstance(rescued, Plan)
    assert rescued.is_rescued
    assert is_within(between, rescued.chosen)
    assert "nothing keeps all limits" in rescued.proven


def test_limits_that_only_help_together_are_told_together() -> None:
    (judged, *_) = refused("two").remedies
    assert len({change.limit for change in judged.changes}) > 1
    (first, *_) = sought("two").remedies
    assert first.proof is not None
    assert "1% less of them was tried and fails" in first.evidence
    again = make_plan(eased(REQUESTS["two"], judged))
    # a policy's own parameters follow the targets: what is found then may be a little worse
    nearest = again.chosen if isinstance(again, Plan) else again.nearest
    assert nearest is not None
    assert excess_of(again.request, nearest) < 0.05


def test_the_nearest_fleet_fits_the_gpus_there_are() -> None:
    for name in ("e2e", "load"):
        nearest = refused(name).nearest
        assert nearest is not None, name
        assert fits(REQUESTS[name], nearest)
        assert not is_within(REQUESTS[name], nearest)
        assert "the nearest that was simulated has" in refused(name).reason
