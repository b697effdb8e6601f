"""A request that no fleet keeps has a page that says what would help."""

from dataclasses import replace

from conserve_sglang.planning import Infeasible
from conserve_sglang.planning.remedy import MEANING, Change, Proof, Remedy, Tried
from conserve_sglang.planning.rows import Limit
from conserve_sglang.profiles import shipped_profile
from conserve_sglang.report.refusal_page import NONE_FOUND, refusal_page
from tests.planning.builders import a_request
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
    assert NONE_FOUND in words(replace(PLAN, remedies=()))
