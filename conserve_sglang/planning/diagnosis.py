"""Why there is no answer, and what holds the best one back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.problem import Answer, Limits, Objective, Problem
from conserve_sglang.planning.program import Solved, bound, is_large, solve
from conserve_sglang.planning.remedy import Change, Changes, size_of
from conserve_sglang.planning.request import KWH_A_DAY
from conserve_sglang.planning.rows import Limit

LEAST_GAIN = 0.001
_BETTER = {
    Objective.TOKENS_PER_JOULE: "there would be {} more tokens/J",
    Objective.LOAD: "{} more load would be carried",
    Objective.WATTS: "{} less could be drawn at most",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """The variant that needs the smallest change, its fleet, and the changes (empty: none)."""

    variant: Variant
    problem: Problem
    solved: Solved
    changes: Changes


def least(problems: Sequence[tuple[Variant, Problem]], elastic: frozenset[Limit]) -> Least | None:
    """What would make a request feasible with the smallest change of some limits, by the program's
    approximations; None if nothing does."""
    found: list[Least] = []
    for variant, problem in problems:
        used = frozenset(limit for limit in elastic if given(problem.limits, limit) is not None)
        solved = solve(_with_some_load(problem), elastic=used) if used else None
        if solved is not None:
            changes = tuple(_changes(problem.limits, solved))
            found.append(Least(variant=variant, problem=problem, solved=solved, changes=changes))
    return min(found, key=lambda one: size_of(one.changes), default=None)


def _with_some_load(problem: Problem) -> Problem:
    """The same, but where the most load is sought any at all is demanded."""
    if problem.objective is not Objective.LOAD or not problem.columns:
        return problem
    least = min(column.load_per_s for column in problem.columns)
    return replace(problem, limits=replace(problem.limits, load_per_s=least))


def _changes(limits: Limits, solved: Solved) -> Iterator[Change]:
    for (limit, tier), slack in solved.slack.items():
        if slack <= 1e-6:
            continue
        now = given(limits, limit, tier)
        assert now is not None
        needed = now * (1 - slack) if limit is Limit.LOAD else now + slack
        whole = given(limits, limit)
        relative = slack / whole if limit is Limit.GPUS and whole else (needed - now) / now
        unit = KWH_A_DAY if limit is Limit.MEAN_W else 1.0
        yield Change(
            limit=limit, tier=tier, given=now * unit, needed=needed * unit, relative=relative
        )


def given(limits: Limits, limit: Limit, tier: str = "") -> float | None:
    """What a limit is now; None: there is no such limit."""
    if limit is Limit.GPUS:
        return float(
            sum(
                one.gpus
                for one in limits.gpus
                if one.min_tp == 1 and (not tier or one.tier == tier)
            )
        )
    return {
        Limit.PEAK_W: limits.peak_w,
        Limit.MEAN_W: limits.mean_w,
        Limit.TTFET: limits.ttfet_s,
        Limit.TBT: limits.tbt_s,
        Limit.E2E: limits.e2e_s,
        Limit.LOAD: limits.load_per_s or None,
    }[limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A limit that costs something: without it (GPUs: with twice as many of `tier`) the objective
    would be better by `gain`, a share of it, by the program's approximations: more tokens per
    joule, more load, or less peak power."""

    limit: Limit
    tier: str
    gain: float
    objective: Objective

    @property
    def text(self) -> str:
        """In words."""
        better = f"{_BETTER[self.objective]}, by the integer program's approximations"
        better = better.format(f"{self.gain:.1%}")
        if self.limit is Limit.GPUS:
            return f"GPUs of tier {self.tier}: with twice as many {better}"
        names = {
            Limit.TTFET: "the TTFET target",
            Limit.TBT: "the last-turn TBT target",
            Limit.E2E: "the E2E target",
        }
        what = names.get(self.limit, f"the {self.limit.value}")
        return f"{what}: without it {better}"


def bindings(problem: Problem, answer: Answer) -> tuple[Binding, ...]:
    """The limits that hold an answer back, the most costly first. The demanded load always does,
    and is left out."""
    value = bound(problem) if is_large(problem) else answer.value(problem.objective)
    found: list[Binding] = []
    for limit, tier, relaxed in _relaxed(problem):
        best = bound(relaxed)
        if best is None or not value:
            continue
        gain = _gain(problem.objective, value, best)
        if gain > LEAST_GAIN:
            found.append(Binding(limit=limit, tier=tier, gain=gain, objective=problem.objective))
    return tuple(sorted(found, key=lambda one: -one.gain))


def _gain(objective: Objective, value: float, best: float) -> float:
    """What a limit costs: tokens per joule grow as mean watts fall."""
    if objective is Objective.TOKENS_PER_JOULE:
        return value / best - 1 if best > 0 else 0.0
    return (value - best) / abs(value)


def _relaxed(problem: Problem) -> Iterator[tuple[Limit, str, Problem]]:
    limits = problem.limits
    if limits.peak_w is not None and problem.objective is not Objective.WATTS:
        yield Limit.PEAK_W, "", replace(problem, limits=replace(limits, peak_w=None))
    if limits.mean_w is not None and problem.objective is not Objective.TOKENS_PER_JOULE:
        yield Limit.MEAN_W, "", replace(problem, limits=replace(limits, mean_w=None))
    if limits.ttfet_s is not None:
        yield Limit.TTFET, "", replace(problem, limits=replace(limits, ttfet_s=None))
    if limits.tbt_s is not None:
        yield Limit.TBT, "", replace(problem, limits=replace(limits, tbt_s=None))
    if limits.e2e_s is not None:
        yield Limit.E2E, "", replace(problem, limits=replace(limits, e2e_s=None))
    for tier in sorted({one.tier for one in limits.gpus}):
        gpus = tuple(
            replace(one, gpus=one.gpus * 2) if one.tier == tier else one for one in limits.gpus
        )
        yield Limit.GPUS, tier, replace(problem, limits=replace(limits, gpus=gpus))
