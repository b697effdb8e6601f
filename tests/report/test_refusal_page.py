"""A request that no fleet keeps has a page that says what would help."""

from dataclasses import replace

from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Infeasible, Plan, Targets, make_plan
from conserve_sglang.planning.remedy import MEANING, Change, Proof, Remedy, Tried
from conserve_sglang.planning.rows import Limit
from conserve_sglang.profiles import shipped_profile
from conserve_sglang.report.options import brief
from conserve_sglang.report.refusal_page import refusal_page
from tests.planning.builders import a_request
from tests.planning.test_tier_map import asked
from tests.report.test_plan_page import Checker

GPUS = Change(limit=Limit.GPUS, tier="a<40", given=4.0, needed=6.0, relative=0.25)
PROOF = Proof(tried=Tried.ALL, num_tried=12, step=1.0, most=9000)
PLAN = Infeasible(request=a_request(), remedies=(Remedy(changes=(GPUS,), proof=PROOF),))


def words(plan: Infeasible) -> str:
    checker = Checker()
    text = refusal_page(plan, [shipped_profile("l4-qwen3-0.6b")], "conserve-sglang plan <x>")
    checker.feed(text)
    assert not checker.open
    assert not checker.refers
    return " ".join(checker.words.split())


def test_changes_stand_with_their_evidence_and_what_smallest_means() -> None:
    said = words(PLAN)
    assert f"2 more GPUs in tier a<40 ({PLAN.remedies[0].evidence})" in said
    assert MEANING in said
    assert "profile l4-qwen3-0.6b: times estimated" in said
    assert "conserve-sglang plan <x>" in said


def test_without_a_change_it_says_so() -> None:
    none = replace(PLAN, remedies=())
    assert "other GPUs or another model are needed." in words(none)
    tiers = tuple(replace(tier, roles=(Role.DECODE,)) for tier in PLAN.request.inventory.tiers[:1])
    inventory = replace(PLAN.request.inventory, tiers=(*tiers, *PLAN.request.inventory.tiers[1:]))
    narrowed = replace(none, request=replace(PLAN.request, inventory=inventory))
    assert "or more roles than the inventory gives a40." in words(narrowed)


def test_limits_stand_beside_what_the_nearest_fleet_makes_of_them() -> None:
    request = replace(asked(), targets=Targets(tbt_s=1.0))
    plan = make_plan(request)
    assert isinstance(plan, Plan)
    tight = replace(request, targets=Targets(tbt_s=0.001, e2e_s=1e6))
    said = words(Infeasible(request=tight, remedies=(), nearest=plan.chosen))
    flat = " ".join(said.split())
    assert "last-turn TBT p95 1 ms" in flat
    assert (flat.count(" broken "), flat.count(" kept ")) == (1, 2), "E2E and the power budget"
    assert f"The nearest fleet: {brief(plan.chosen)}" in flat
    assert "2 x A40 (a40)" in flat
    assert "No tier map was written" in flat


def test_without_a_fleet_that_was_simulated_it_has_the_limits() -> None:
    flat = " ".join(words(PLAN).split())
    assert "TTFET p95: 60 s last-turn TBT p95: 0.05 s GPUs there are" in flat
