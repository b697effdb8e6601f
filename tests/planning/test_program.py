"""The integer program finds what trying every choice finds."""

import dataclasses
import random
from functools import cache

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.planning import program
from conserve_sglang.planning.problem import (
    Answer,
    Column,
    Config,
    GpuLimit,
    Limits,
    Objective,
    Problem,
    answer_of,
    undominated,
)
from conserve_sglang.planning.program import solve
from conserve_sglang.planning.rows import Limit
from tests.planning import brute_force

NUM_PROBLEMS = 24
PD = frozenset({Role.PREFILL, Role.DECODE})


def a_column(rng: random.Random, tier: str, role: Role, tp: int) -> Column:
    load = rng.uniform(0.3, 3.0) * tp
    mean_w = rng.uniform(40, 300) * tp
    return Column(
        config=Config(
            tier=tier,
            role=role,
            tp=tp,
            power_cap_w=rng.choice([None, 200.0]),
            sm_clock_mhz=None,
            profile=f"{tier}-{rng.randrange(1000)}",
        ),
        load_per_s=load,
        mean_w=mean_w,
        peak_w=mean_w * rng.uniform(1.0, 2.0),
        ttfet_s=rng.uniform(0.5, 5.0),
        tbt_s=rng.uniform(0.01, 0.1),
        min_count=rng.choice([1, 1, 2]),
        e2e_s=random.Random(mean_w).uniform(0.5, 8.0),
    )


def a_problem(seed: int, objective: Objective) -> Problem:
    rng = random.Random(seed)
    roles = rng.choice([PD, PD, frozenset({Role.MIXED})])
    tiers = ["fast", "small"]
    columns = tuple(
        a_column(rng, tier, role, rng.choice([1, 1, 2]))
        for tier in tiers
        for role in sorted(roles, key=lambda role: role.value)
        for _ in range(3)
    )
    gpus = tuple(
        limit
        for tier in tiers
        for size in [rng.randint(1, 4)]
        for limit in (
            GpuLimit(tier=tier, min_tp=1, gpus=size),
            GpuLimit(tier=tier, min_tp=2, gpus=size // 2 * 2),
        )
    )

    def maybe(low: float, high: float) -> float | None:
        return rng.uniform(low, high) if rng.random() < 0.6 else None

    demanded = rng.uniform(0.2, 6.0)
    limits = Limits(
        load_per_s=0.0 if objective is Objective.LOAD else demanded,
        gpus=gpus,
        peak_w=maybe(300, 2000),
        mean_w=maybe(200, 1500),
        ttfet_s=maybe(2, 10),
        tbt_s=maybe(0.03, 0.1),
        e2e_s=random.Random(seed).uniform(4, 14) if seed % 3 == 0 else None,
    )
    return Problem(
        columns=columns,
        roles=roles,
        limits=limits,
        objective=objective,
        kind_cost=rng.choice([0.0, 0.0, 0.2 if objective is Objective.LOAD else 30.0]),
    )


@cache
def tried_all(seed: int, objective: Objective) -> Answer | None:
    return brute_force.best(a_problem(seed, objective))


@pytest.mark.parametrize("objective", list(Objective), ids=lambda objective: objective.value)
def test_the_program_is_as_good_as_trying_everything(objective: Objective) -> None:
    outcomes = set()
    for seed in range(NUM_PROBLEMS):
        problem = a_problem(seed, objective)
        expected = tried_all(seed, objective)
        found = solve(problem)
        outcomes.add(found is None)
        if expected is None:
            assert found is None, f"seed {seed}"
            continue
        assert found is not None, f"seed {seed}"
        assert brute_force.keeps(problem, found.answer), f"seed {seed}"
        assert found.answer.value(objective) == pytest.approx(expected.value(objective), rel=1e-5)
    assert outcomes == {True, False}, "the problems are all alike"


@pytest.mark.parametrize("objective", list(Objective), ids=lambda objective: objective.value)
def test_leaving_dominated_columns_out_costs_nothing(objective: Objective) -> None:
    left_out = 0
    for seed in range(NUM_PROBLEMS):
        problem = a_problem(seed, objective)
        fewer = dataclasses.replace(problem, columns=undominated(problem.columns))
        left_out += len(problem.columns) - len(fewer.columns)
        whole, part = tried_all(seed, objective), brute_force.best(fewer)
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert part.value(objective) == pytest.approx(whole.value(objective))
    assert left_out > 4


@pytest.mark.parametrize("objective", list(Objective), ids=lambda objective: objective.value)
def test_a_part_of_the_columns_is_as_good_as_the_gap_says(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST_COLUMNS", 0)
    monkeypatch.setattr(program, "KEPT_POINTS", 1)
    monkeypatch.setattr(program, "KEPT_OF_GROUP", 1)
    monkeypatch.setattr(program, "GOOD_GAP", 1.0)
    gaps = []
    for seed in range(NUM_PROBLEMS):
        problem = a_problem(seed, objective)
        best, found = tried_all(seed, objective), solve(problem)
        if best is None:
            assert found is None
            continue
        assert found is not None
        value, least = found.answer.value(objective), best.value(objective)
        assert value >= least * (1 + 1e-5 * (1 if least < 0 else -1))
        assert (value - least) / abs(value) <= found.answer.gap + 1e-5
        gaps.append((value - least) / abs(value))
    if objective is not Objective.LOAD:
        assert max(gaps) > 0.001, "the part had the best answer each time"


def test_a_forbidden_set_of_configurations_is_not_chosen_again() -> None:
    problem = dataclasses.replace(
        a_problem(11, Objective.TOKENS_PER_JOULE),
        limits=Limits(
            load_per_s=1.0,
            gpus=tuple(GpuLimit(tier=tier, min_tp=1, gpus=3) for tier in ("fast", "small")),
        ),
    )
    seen: list[frozenset[Config]] = []
    values = []
    while (found := solve(problem, forbidden=seen)) is not None:
        assert found.answer.configs not in seen
        seen.append(found.answer.configs)
        values.append(found.answer.value(problem.objective))
    every = {answer.configs for answer in feasible(problem)}
    assert set(seen) == every
    assert len(seen) > 1
    assert values == sorted(values)


def feasible(problem: Problem) -> list[Answer]:
    answers = brute_force.answers_of(problem)
    return [answer for answer in answers if brute_force.keeps(problem, answer)]


def one_tier(**limits: float | None) -> Problem:
    """Prefill 2 conversations/s, decode 1/s a worker; 100 W each; four GPUs."""

    def column(role: Role, load: float) -> Column:
        return Column(
            config=Config(
                tier="a", role=role, tp=1, power_cap_w=None, sm_clock_mhz=None, profile="p"
            ),
            load_per_s=load,
            mean_w=100.0,
            peak_w=150.0,
            ttfet_s=1.0,
            tbt_s=0.02,
            e2e_s=1.25,
        )

    return Problem(
        columns=(column(Role.PREFILL, 2.0), column(Role.DECODE, 1.0)),
        roles=PD,
        limits=Limits(
            load_per_s=limits.pop("load_per_s", 2.0) or 0.0,
            gpus=(GpuLimit(tier="a", min_tp=1, gpus=4),),
            **limits,
        ),
        objective=Objective.TOKENS_PER_JOULE,
    )


@pytest.mark.parametrize(
    ("limits", "limit", "name", "slack"),
    [
        ({"peak_w": 400.0}, Limit.PEAK_W, "", 50.0),
        ({"mean_w": 280.0}, Limit.MEAN_W, "", 20.0),
        ({"ttfet_s": 1.5}, Limit.TTFET, "", 0.5),
        ({"tbt_s": 0.015}, Limit.TBT, "", 0.005),
        ({"e2e_s": 2.0}, Limit.E2E, "", 0.5),
        ({"load_per_s": 4.0}, Limit.GPUS, "a", 2.0),
        ({"load_per_s": 4.0}, Limit.LOAD, "", 0.5),
    ],
)
def test_the_least_a_limit_must_give_way(
    limits: dict[str, float | None], limit: Limit, name: str, slack: float
) -> None:
    problem = one_tier(**limits)
    assert solve(problem) is None
    found = solve(problem, elastic=frozenset({limit}))
    assert found is not None
    assert found.slack[limit, name] == pytest.approx(slack, rel=1e-4)


def test_a_limit_that_is_not_to_blame_does_not_help() -> None:
    problem = one_tier(peak_w=400.0, ttfet_s=1.5)
    assert solve(problem, elastic=frozenset({Limit.PEAK_W})) is None
    both = solve(problem, elastic=frozenset({Limit.PEAK_W, Limit.TTFET}))
    assert both is not None
    assert both.slack[Limit.PEAK_W, ""] == pytest.approx(50.0)
    assert both.slack[Limit.TTFET, ""] == pytest.approx(0.5)


def test_pools_smaller_than_a_column_counts_on_are_not_chosen() -> None:
    problem = one_tier(load_per_s=1.0)
    pooled = tuple(dataclasses.replace(column, min_count=2) for column in problem.columns)
    found = solve(dataclasses.replace(problem, columns=pooled))
    assert found is not None
    assert sorted(found.answer.counts.values()) == [2, 2]


def test_no_columns_is_no_answer() -> None:
    assert solve(dataclasses.replace(one_tier(), columns=())) is None


def test_an_answer_sums_up_its_workers() -> None:
    problem = one_tier()
    prefill, decode = problem.columns
    answer = answer_of(problem, {prefill: 1, decode: 3})
    assert (answer.load_per_s, answer.mean_w, answer.peak_w) == (2.0, 400.0, 600.0)
    assert (answer.ttfet_s, answer.tbt_s, answer.e2e_s) == (2.0, 0.02, 2.5)
