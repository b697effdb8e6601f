"""The power controller in virtual time: budgets kept on modelled workers, by the router's law."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ProfileError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.power.observation import CapMove
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    Simulation,
    Summary,
    Tally,
    deployment_of,
    profiles_of,
)
from conserve_sglang.sim.budget import SimulatedBudget, within_cap
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.workload import (
    ConversationPlan,
    mini_swe_conversations,
    poisson_arrivals,
    with_arrivals,
)

MAPS = Path(__file__).parents[2] / "tier_maps"


def the_paper(budget_w: float | None, per_token: float | None = None) -> TierMap:
    """1 + 3 A40 without caps: 1040 W at most in these runs."""
    tier_map = load_tier_map(MAPS / "a40_capped.yaml")
    return replace(
        tier_map,
        tiers=tuple(replace(tier, power_cap_w=None) for tier in tier_map.tiers),
        power_budget_w=budget_w,
        energy_budget_j_per_output_token=per_token,
        slo=replace(tier_map.slo, ttfet_s=None),
    )


def plans(count: int = 150, rate: float = 2.0) -> list[ConversationPlan]:
    rng = random.Random(5)
    return list(with_arrivals(mini_swe_conversations(count, rng), poisson_arrivals(rate, rng)))


def play(
    tier_map: TierMap, conversations: Sequence[ConversationPlan]
) -> tuple[SimulatedBudget, Simulation, Summary]:
    profiles, _ = profiles_of(tier_map)
    tally = Tally(A40_QWEN3_0_6B)
    simulation = Simulation(deployment_of(tier_map, profiles, tier_map.policy), tally)
    budget = SimulatedBudget(tier_map, profiles)
    budget.attach(simulation)
    simulation.run(conversations)
    return budget, simulation, tally.summary(simulation)


def test_without_a_budget_nothing_is_moved_and_joules_are_all_seen() -> None:
    budget, simulation, summary = play(the_paper(None), plans())
    assert budget.moves == []
    assert summary.modelled_energy is not None
    end_s = simulation.kernel.now
    seen_j = sum(budget.watts)  # a second each
    whole_j = sum(each.total_j for each in simulation.energy(end_s))
    last_j = 300.0 * 4  # what was drawn after the last look, at most
    assert seen_j == pytest.approx(whole_j, abs=last_j)
    assert sum(w.joules_by(end_s) for w in simulation.workers.values()) == pytest.approx(whole_j)


@pytest.mark.parametrize("budget_w", [900.0, 800.0, 700.0])
def test_a_budget_is_exceeded_for_one_period_at_a_time(budget_w: float) -> None:
    free, _, _ = play(the_paper(None), plans())
    budget, _, summary = play(the_paper(budget_w), plans())
    over = [n for n, watts in enumerate(budget.watts) if watts > budget_w]
    assert sum(watts > budget_w for watts in free.watts) > 10 * len(over)
    assert all(later - sooner > 1 for sooner, later in pairwise(over))
    moved = [move for _, move in budget.moves if isinstance(move, CapMove)]
    assert {move.tier for move in moved} == {"decode"}  # it alone can pay here
    assert budget.summary().num_over == len(over)
    assert summary.last_turn_tbt is not None
    assert summary.last_turn_tbt.p95_s <= 0.1  # the SLO
    assert summary.outcomes == {"answered": 150}


def test_raises_that_break_the_budget_come_ever_later() -> None:
    budget, _, _ = play(the_paper(700.0), plans(400))
    broken = [now for now, move in budget.moves if isinstance(move, CapMove)
              and move.after_w < move.before_w]  # fmt: skip
    assert len(broken) <= 8  # in some 450 s


def test_a_budget_per_token_brings_joules_down() -> None:
    _, _, free = play(the_paper(None), plans(300))
    budget, _, capped = play(the_paper(None, per_token=0.8), plans(300))
    assert free.modelled_energy is not None
    assert capped.modelled_energy is not None
    before_j, after_j = free.modelled_energy.output_token_j, capped.modelled_energy.output_token_j
    assert before_j is not None
    assert after_j is not None
    assert after_j < 0.97 * before_j
    assert budget.summary().num_moves["energy_target"] >= 2


def test_the_same_run_moves_the_same() -> None:
    one, _, first = play(the_paper(800.0), plans())
    two, _, second = play(the_paper(800.0), plans())
    assert (one.moves, one.watts, first) == (two.moves, two.watts, second)


def test_an_impossible_budget_ends_with_the_least_caps_and_fewer_turns() -> None:
    budget, _, _ = play(the_paper(250.0), plans(40))
    summary = budget.summary()
    assert summary.caps_w == {"prefill": 100.0, "decode": 100.0}  # the least an A40 accepts
    assert summary.num_moves["over_budget"] >= 2


def test_a_profile_without_watts_cannot_keep_a_budget() -> None:
    tier_map = the_paper(800.0)
    profiles, _ = profiles_of(tier_map)
    bare = {
        name: replace(
            profile,
            prefill=tuple(replace(point, watts=None) for point in profile.prefill),
            decode=tuple(replace(point, watts=None) for point in profile.decode),
        )
        for name, profile in profiles.items()
    }
    with pytest.raises(ProfileError, match="no watts"):
        SimulatedBudget(tier_map, bare)


def test_nothing_draws_more_than_its_cap() -> None:
    budget, _, _ = play(the_paper(700.0), plans())
    perf = within_cap(A40_QWEN3_0_6B, 150.0)
    assert perf.power is not None
    assert perf.power.most_w == 150.0
    allowed_w = 300.0 + 3 * max(
        move.before_w for _, move in budget.moves if isinstance(move, CapMove)
    )
    assert max(budget.watts) <= allowed_w
