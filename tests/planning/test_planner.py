"""Plans keep their limits, in the simulator, and say why where there is none."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.errors import PlanError
from conserve_sglang.core.worker import Role
from conserve_sglang.planning import Infeasible, Objective, Plan, hardware_of, make_plan
from conserve_sglang.planning.inventory import Host
from conserve_sglang.planning.judging import NUM_SEEDS
from conserve_sglang.planning.plan import Option, concessions, is_within, margins_of
from conserve_sglang.planning.remedy import size_of
from conserve_sglang.planning.request import Targets
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.shortlist import shortlist
from conserve_sglang.planning.tier_map import checked, tier_map_text
from conserve_sglang.sim import deployment_of, profiles_of
from tests.planning.builders import INVENTORY, a_request


@cache
def planned(objective: Objective = Objective.TOKENS_PER_JOULE) -> Plan:
    plan = make_plan(a_request(objective=objective, power_budget_w=700.0))
    assert isinstance(plan, Plan)
    return plan


def test_the_choice_keeps_every_limit_and_no_other_that_does_is_better() -> None:
    plan = planned()
    assert is_within(plan.request, plan.chosen)
    assert all(margin.share >= 0 for margin in plan.margins)
    assert {margin.name for margin in plan.margins} >= {"TTFET p95", "peak power"}
    assert len(plan.options) > 3


def test_the_choice_is_judged_with_every_seed_and_nothing_judged_is_better() -> None:
    plan = planned()
    score = plan.chosen.score
    assert score.runs.is_judged
    assert score.runs.is_filled
    assert score.is_steady
    assert score.runs.seeds == (0, 1, 2)
    assert len(plan.chosen.by_seed) == NUM_SEEDS
    for one in plan.chosen.by_seed:
        assert is_within(plan.request, replace(plan.chosen, score=one))
        assert one.ttfet_s <= score.ttfet_s
        assert one.mean_w <= score.mean_w
    best = plan.chosen.value(plan.request.objective)
    judged = [option for option in plan.runner_ups if option.is_judged]
    assert all(option.value(plan.request.objective) >= best for option in judged)
    for option in plan.rejected:
        assert not is_within(plan.request, option)


def test_gpus_that_are_left_unused_hold_nothing_back() -> None:
    plan = make_plan(a_request(rate_per_s=0.1))
    assert isinstance(plan, Plan)
    used = {config.tier: config.tp * count for config, count in plan.chosen.counts.items()}
    unused = {tier.name for tier in INVENTORY.tiers if used.get(tier.name, 0) < tier.num_gpus}
    assert unused
    assert not unused & {one.tier for one in plan.bindings}


def test_an_energy_budget_is_answered_in_kwh_a_day() -> None:
    plan = make_plan(a_request(mean_power_w=20.0), is_brief=True)
    assert isinstance(plan, Infeasible)
    assert plan.nearest is not None
    (margin,) = [one for one in margins_of(plan.request, plan.nearest) if one.name == "energy"]
    assert margin.limit == pytest.approx(0.48)
    assert margin.value == pytest.approx(plan.nearest.score.mean_w * 0.024)
    said = [change.text for remedy in plan.remedies for change in remedy.changes]
    assert any("kWh a day instead of 0.48" in text for text in said), said


def test_a_target_below_the_tool_gaps_is_refused_whatever_the_fleet() -> None:
    request = a_request()
    waits = [
        replace(plan, turns=(plan.turns[0], *(replace(t, gap_s=20.0) for t in plan.turns[1:])))
        for plan in request.load.conversations
        if len(plan.turns) > 1
    ]
    load = replace(request.load, conversations=tuple(waits))
    plan = make_plan(replace(request, load=load))
    assert isinstance(plan, Infeasible)
    assert "TTFET and E2E hold the tool gaps" in plan.reason
    assert plan.remedies == ()


def test_a_percentile_that_no_run_supports_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--percentile 99.99: a run is simulated with at most"):
        make_plan(a_request(targets=Targets(level=0.9999)))


def test_an_e2e_target_is_kept_and_costs_what_it_must() -> None:
    free = make_plan(a_request(targets=Targets()))
    assert isinstance(free, Plan)
    target = free.chosen.score.e2e_s * 0.7
    plan = make_plan(a_request(targets=Targets(e2e_s=target)))
    assert isinstance(plan, Plan)
    assert plan.chosen.score.ttfet_s < plan.chosen.score.e2e_s <= target
    assert [margin.name for margin in plan.margins] == ["E2E p95"]
    assert plan.margins[0].value == plan.chosen.score.e2e_s
    assert plan.chosen.score.tokens_per_joule < free.chosen.score.tokens_per_joule
    text = tier_map_text(plan.request, plan.chosen.counts, plan.chosen.policy)
    assert checked(text, source="planned", folder=Path()).slo.e2e_s == pytest.approx(target)


def test_the_same_request_is_the_same_plan() -> None:
    again = make_plan(planned().request)
    assert isinstance(again, Plan)
    assert again.chosen == planned().chosen


def test_the_choice_fits_the_inventory() -> None:
    for option in planned().options:
        used: dict[str, int] = {}
        for config, count in option.counts.items():
            used[config.tier] = used.get(config.tier, 0) + config.tp * count
        assert all(used.get(tier.name, 0) <= tier.num_gpus for tier in INVENTORY.tiers)


def test_the_least_watts_draw_no_more_than_the_most_tokens_a_joule() -> None:
    assert planned(Objective.WATTS).chosen.peak_w <= planned().chosen.peak_w


def test_the_most_load_is_more_than_a_load_that_is_easily_kept() -> None:
    plan = planned(Objective.LOAD)
    assert plan.chosen.score.load_per_s > 0.5
    assert is_within(plan.request, plan.chosen)


def test_how_good_the_first_choice_is_known_to_be_is_said() -> None:
    plan = planned()
    assert plan.proven.startswith("no choice is better than the integer program's first one")
    (tier, *rest) = INVENTORY.tiers
    hosts = tuple(Host(name=f"h{number}", gpu_ids=tuple(range(8))) for number in range(9))
    large = replace(INVENTORY, tiers=(replace(tier, hosts=hosts), *rest))
    told = replace(plan, request=replace(plan.request, inventory=large), gap=0.0123).proven
    assert told.startswith("76 GPUs are more than the 64 that are planned exactly")
    assert "the best choice is at most 1.23% better" in told


def test_a_limit_that_binds_costs_what_is_said() -> None:
    request = a_request(targets=Targets(ttfet_s=60.0, tbt_s=0.03))
    plan = make_plan(request)
    assert isinstance(plan, Plan)
    (tbt,) = (one for one in plan.bindings if one.limit is Limit.TBT)
    bound, free = (
        min(one.answer.mean_w for one in shortlist(each).candidates if one.headroom == 1.0)
        for each in (request, replace(request, targets=Targets(ttfet_s=60.0)))
    )
    assert tbt.gain == pytest.approx(bound / free - 1, rel=0.02)
    assert f"{tbt.gain:.1%} more tokens/J" in tbt.text


def test_a_planned_map_is_one_that_launch_reads() -> None:
    plan = planned()
    text = tier_map_text(plan.request, plan.chosen.counts, plan.chosen.policy, ["why", "", "so"])
    tier_map = checked(text, source="planned", folder=Path())
    assert text.startswith("# why\n#\n# so\nschema_version: 1\n")
    assert len(tier_map.workers) == sum(plan.chosen.counts.values())
    assert tier_map.policy == plan.chosen.policy
    assert tier_map.power_budget_w == 700.0
    assert (tier_map.slo.ttfet_s, tier_map.slo.last_turn_tbt_s) == (60.0, 0.05)
    caps = {(tier.gpu, tier.role, tier.power_cap_w) for tier in tier_map.tiers}
    gpus = {"a40": "A40", "l4": "L4"}
    assert caps == {(gpus[c.tier], c.role, c.power_cap_w) for c in plan.chosen.counts}


def test_simulate_plays_a_planned_map_with_what_it_was_planned_with() -> None:
    plan = planned()
    text = tier_map_text(plan.request, plan.chosen.counts, plan.chosen.policy)
    tier_map = checked(text, source="planned", folder=Path())
    profiles, notes = profiles_of(tier_map)
    deployment = deployment_of(tier_map, profiles, plan.chosen.policy)
    known = {one.config(role): one for one in plan.request.hardware for role in Role}
    wanted = sorted(
        (config.role.value, known[config].perf.name, known[config].kv_capacity_tokens)
        for config, count in plan.chosen.counts.items()
        for _ in range(count)
    )
    found = [
        (worker.spec.role.value, worker.perf.name, worker.spec.kv_capacity_tokens)
        for worker in deployment.workers
    ]
    assert notes == ()
    assert sorted(found) == wanted
    perfs = {worker.perf.name: worker.perf for worker in deployment.workers}
    assert all(
        perfs[known[config].perf.name] == known[config].perf for config in plan.chosen.counts
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"power_budget_w": 60.0}, "a power budget of"),
        ({"mean_power_w": 20.0}, "an energy budget of"),
        ({"targets": Targets(tbt_s=0.004)}, "a last-turn TBT target of"),
        ({"targets": Targets(ttfet_s=2.0)}, "a TTFET target of"),
        ({"targets": Targets(e2e_s=2.0)}, "an E2E target of"),
    ],
)
def test_what_cannot_be_is_said_with_the_least_change_that_helps(
    changes: dict[str, Any], words: str
) -> None:
    request = a_request(**changes)
    plan = make_plan(request)
    assert isinstance(plan, Infeasible)
    said = [change.text for remedy in plan.remedies for change in remedy.changes]
    assert any(text.startswith(words) for text in said), said
    sizes = [remedy.size for remedy in plan.remedies]
    assert sizes == sorted(sizes)


def test_a_budget_raised_as_told_is_enough_for_the_program_too() -> None:
    plan = make_plan(a_request(power_budget_w=150.0))
    assert isinstance(plan, Infeasible)
    (needed,) = (
        change.needed
        for remedy in plan.remedies
        for change in remedy.changes
        if change.limit is Limit.PEAK_W and len(remedy.changes) == 1
    )
    assert shortlist(a_request(power_budget_w=needed * 1.001)).candidates
    assert not shortlist(a_request(power_budget_w=150.0)).candidates


def test_fleets_that_fail_in_the_simulator_say_what_they_would_keep() -> None:
    plan = planned()
    score = plan.chosen.score
    strict = replace(
        plan.request, targets=Targets(ttfet_s=score.ttfet_s * 0.9, tbt_s=score.tbt_s * 2)
    )
    remedies = concessions(strict, plan.options)
    sizes = [size_of(remedy.changes) for remedy in remedies]
    assert 0 < len(remedies) <= 3
    assert sizes == sorted(sizes)
    for remedy in remedies:
        needed = {change.limit: change.needed for change in remedy.changes}
        targets = Targets(
            ttfet_s=needed.get(Limit.TTFET, strict.targets.ttfet_s),
            tbt_s=needed.get(Limit.TBT, strict.targets.tbt_s),
        )
        budget = needed.get(Limit.PEAK_W, strict.power_budget_w)
        eased = replace(strict, targets=targets, power_budget_w=budget)
        assert any(is_within(eased, option) for option in plan.options)
        assert not any(is_within(strict, option) for option in [plan.chosen])


def test_too_much_load_asks_for_gpus_or_less_load() -> None:
    plan = make_plan(a_request(rate_per_s=50.0))
    assert isinstance(plan, Infeasible)
    said = [change.text for remedy in plan.remedies for change in remedy.changes]
    assert any("more GPUs in tier" in text for text in said)
    assert any("conversations/s instead of 50" in text for text in said)


def test_one_tier_alone_uses_only_that_tier() -> None:
    plan = make_plan(a_request(rate_per_s=0.2).with_only("l4"))
    assert isinstance(plan, Plan)
    assert {config.tier for config in plan.chosen.counts} == {"l4"}


def test_without_caps_nothing_is_capped() -> None:
    free = a_request().without_caps()
    assert {one.power_cap_w for one in free.hardware} == {None}
    assert {one.tier for one in free.hardware} == {"a40", "l4"}


def test_roles_that_an_inventory_forbids_are_not_chosen() -> None:
    tiers = tuple(
        replace(tier, roles=(Role.DECODE,) if tier.name == "l4" else (Role.PREFILL, Role.DECODE))
        for tier in INVENTORY.tiers
    )
    plan = make_plan(a_request(inventory=replace(INVENTORY, tiers=tiers)))
    assert isinstance(plan, Plan)
    options: tuple[Option, ...] = plan.options
    roles = {(config.tier, config.role) for option in options for config in option.counts}
    assert ("l4", Role.PREFILL) not in roles
    assert all(role is not Role.MIXED for _, role in roles)


def test_an_inventory_without_profiles_says_what_to_do() -> None:
    with pytest.raises(PlanError, match="none of the profiles is of A40 or L4 with Qwen"):
        hardware_of(INVENTORY, [])
