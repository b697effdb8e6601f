"""From a request to the fleets worth simulating: columns, integer programs, their answers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.demand import Demand, Variant
from conserve_sglang.planning.operating import Decoder, Prefiller, Target
from conserve_sglang.planning.problem import (
    Answer,
    Column,
    Config,
    Objective,
    Problem,
    undominated,
)
from conserve_sglang.planning.program import solve
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.variants import demands_of

HEADROOMS = (0.8, 1.25, 1.6)
"""Fleets for less and for more than the demanded load are on the list too: the approximations
may be too careful, or not careful enough, and the simulator decides."""
MORE_HEADROOMS = (2.0, 2.5, 3.2)
NUM_VARIANTS = 2
KIND_SHARE = 0.003
"""What a further kind of worker must be worth, as a share of the least that the load can cost."""
"""So many of the best variants get these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A fleet: the answer to the integer program of one variant, for `headroom` times the load."""

    variant: Variant
    answer: Answer
    headroom: float = 1.0
    label: str = ""

    @property
    def counts(self) -> dict[Config, int]:
        """Workers by configuration."""
        return {column.config: count for column, count in self.answer.counts.items()}

    @property
    def num_workers(self) -> int:
        """All of them."""
        return sum(self.answer.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Candidates, the best by approximation first, and how they were found. `problems` are the
    programs of the demanded load, by variant."""

    candidates: tuple[Candidate, ...]
    problems: tuple[tuple[Variant, Problem], ...]
    num_columns: int
    columns_s: float
    solve_s: float

    def problem_of(self, candidate: Candidate) -> Problem:
        """The program a candidate is an answer to, but for its headroom."""
        name = candidate.variant.name
        return next(problem for variant, problem in self.problems if variant.name == name)


def problems_of(request: Request) -> tuple[tuple[Variant, Problem], ...]:
    """One integer program a variant."""
    return tuple((demand.variant, problem_of(request, demand)) for demand in demands_of(request))


def problem_of(request: Request, demand: Demand) -> Problem:
    """The columns of a variant's roles, those that can be part of a best answer."""
    limits = request.limits()
    columns = tuple(_columns(request, demand))
    if limits.ttfet_s is None:
        columns = tuple(replace(column, ttfet_s=0.0) for column in columns)
    if limits.e2e_s is None:
        columns = tuple(replace(column, e2e_s=0.0) for column in columns)
    if limits.ttfet_s is None and limits.e2e_s is None:
        columns = tuple(column for column in columns if _is_single(column))
    if limits.tbt_s is None:
        columns = tuple(replace(column, tbt_s=0.0) for column in columns)
    return Problem(
        columns=undominated(columns),
        roles=demand.variant.roles,
        limits=limits,
        objective=request.objective,
        kind_cost=KIND_SHARE * _scale(columns, request.objective, limits.load_per_s),
    )


def _scale(columns: tuple[Column, ...], objective: Objective, load_per_s: float) -> float:
    """About what the objective will be, or less: the cheapest way to carry the load."""
    if objective is Objective.LOAD or not columns:
        return 0.0
    is_mean = objective is Objective.TOKENS_PER_JOULE
    return load_per_s * min(
        (column.mean_w if is_mean else column.peak_w) / column.load_per_s for column in columns
    )


def _is_single(column: Column) -> bool:
    """Pool sizes differ in waits alone."""
    return column.min_count == 1


def _columns(request: Request, demand: Demand) -> Iterator[Column]:
    demanded = None if request.objective is Objective.LOAD else request.load.rate_per_s
    gpus = {tier.name: tier.num_gpus for tier in request.inventory.tiers}
    for hardware in request.hardware:
        target = Target(
            level=request.targets.level,
            load_per_s=demanded,
            most_workers=gpus[hardware.tier] // hardware.tp,
        )
        for role in demand.variant.roles:
            if not request.allows(hardware, role):
                continue
            if role is Role.PREFILL:
                yield from Prefiller(hardware, demand, target).columns()
            else:
                yield from Decoder(hardware, demand, target, role).columns()


def scaled_load(problem: Problem, factor: float) -> Problem:
    """The same for a multiple of the demanded load."""
    limits = replace(problem.limits, load_per_s=problem.limits.load_per_s * factor)
    return replace(problem, limits=limits)


def shortlist(request: Request) -> Shortlist:
    """Solve, and solve again for neighbours of the best."""
    started = time.perf_counter()
    problems = problems_of(request)
    columns_s = time.perf_counter() - started
    best = sorted(_solved(problems), key=lambda one: one[0].answer.value(request.objective))
    candidates = [candidate for candidate, _ in best]
    for candidate, problem in best[:NUM_VARIANTS]:
        if request.objective is not Objective.LOAD:
            candidates.extend(_neighbours(candidate, problem))
    for candidate, problem in best[:1]:
        other = solve(problem, forbidden=[candidate.answer.configs])
        if other is not None:
            label = "other GPUs or knobs"
            candidates.append(replace(candidate, answer=other.answer, label=label))
    return Shortlist(
        candidates=_different(candidates),
        problems=problems,
        num_columns=sum(len(problem.columns) for _, problem in problems),
        columns_s=columns_s,
        solve_s=time.perf_counter() - started - columns_s,
    )


def _solved(
    problems: tuple[tuple[Variant, Problem], ...],
) -> Iterator[tuple[Candidate, Problem]]:
    for variant, problem in problems:
        solved = solve(problem)
        if solved is not None:
            yield Candidate(variant=variant, answer=solved.answer), problem


def _neighbours(candidate: Candidate, problem: Problem) -> Iterator[Candidate]:
    for headroom in HEADROOMS:
        solved = solve(scaled_load(problem, headroom))
        if solved is not None:
            label = f"for {headroom:g} x the load"
            yield replace(candidate, answer=solved.answer, headroom=headroom, label=label)


def more_headroom(request: Request, found: Shortlist) -> Iterator[Candidate]:
    """Fleets for more and more of the load, as far as the GPUs go: for when the simulator finds
    none of the others good enough."""
    if request.objective is Objective.LOAD:
        return
    for candidate in found.candidates[:NUM_VARIANTS]:
        problem = found.problem_of(candidate)
        for headroom in MORE_HEADROOMS:
            solved = solve(scaled_load(problem, headroom))
            if solved is None:
                break
            label = f"for {headroom:g} x the load"
            yield replace(candidate, answer=solved.answer, headroom=headroom, label=label)


def _different(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    """Each fleet once: operating points differ where the fleet is the same."""
    found: dict[tuple[object, ...], Candidate] = {}
    for candidate in candidates:
        key = (candidate.variant.name, *sorted(map(repr, candidate.counts.items())))
        found.setdefault(key, candidate)
    return tuple(found.values())
