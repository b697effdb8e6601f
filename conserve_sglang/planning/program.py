"""The integer program, solved by HiGHS through scipy.

    n_c   workers of column c                          integer
    y_c   whether column c is used                     binary
    L     load carried (objective `load` only)

    sum of n_c load_c over a role's columns  >=  the demanded load, or L     each role
    min_count_c y_c  <=  n_c  <=  M_c y_c                                    each column
    sum of y_c  <=  1                                                        each tier and role
    sum of n_c tp_c over tp_c >= k  <=  GPUs                                 each tier and size k
    sum of n_c peak_w_c  <=  power budget,  sum of n_c mean_w_c  <=  mean power
    ttfet_p y_p + ttfet_d y_d  <=  TTFET target          each pair of a prefill and a decode group
    e2e_p y_p + e2e_d y_d  <=  E2E target                the same
    tbt_c y_c  <=  TBT target                            each group

The same rows with a slack on some of them say by how much a limit must give way.

A program of many columns is solved on the few that the linear relaxation finds worth while: there
y_c = n_c / M_c, so that it has one variable a column and a row a limit. Its value bounds what any
answer can reach, and the gap to it is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.planning.problem import Answer, Column, Config, Problem, answer_of
from conserve_sglang.planning.rows import INFINITY, Group, Limit, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """An answer, and by how much each limit that may give way has to: for GPUs by tier, else
    under the empty name."""

    answer: Answer
    slack: Mapping[tuple[Limit, str], float] = field(default_factory=dict)


MOST_COLUMNS = 800
"""A program of more columns is solved on a part of them."""
KEPT_POINTS = 70
"""How many operating points (a configuration at a load) that part has."""
KEPT_OF_GROUP = 2
SMALL_FLEET = 64
"""A fleet of no more GPUs is planned exactly."""
GOOD_GAP = 0.01
"""With more than that, of the objective, the whole program is solved after all."""


def solve(
    problem: Problem,
    *,
    elastic: frozenset[Limit] = frozenset(),
    forbidden: Sequence[frozenset[Config]] = (),
    time_limit_s: float = 10.0,
) -> Solved | None:
    """The best choice of counts; None if there is none.

    With `elastic` limits the least relative excess over them is sought instead of the objective.
    `forbidden` sets of configurations are answers not wanted again. Raises ConfigError where scipy
    is not installed, TimeoutError when no answer was found in `time_limit_s`.
    """
    problem = replace(problem, columns=tuple(_quick_enough(problem, elastic)))
    if not problem.columns:
        return None
    rows = Rows(problem, elastic)
    rows.constrain(forbidden)
    if len(problem.columns) <= MOST_COLUMNS:
        return _integer(rows, time_limit_s)
    relaxed = _relaxation(rows)
    if relaxed is None:
        return None
    part = replace(problem, columns=_worth_while(problem.columns, relaxed.reduced_costs))
    few = Rows(part, elastic)
    few.constrain(forbidden)
    solved = _integer(few, time_limit_s)
    if solved is not None:
        value = _objective_of(few, solved)
        gap = abs(value - relaxed.bound) / abs(value) if value else 0.0
        if gap <= GOOD_GAP:
            return replace(solved, answer=replace(solved.answer, gap=max(gap, solved.answer.gap)))
    try:
        return _integer(rows, time_limit_s)
    except TimeoutError:
        if solved is None:
            raise
        return replace(solved, answer=replace(solved.answer, gap=gap))


def _quick_enough(problem: Problem, elastic: frozenset[Limit]) -> Iterator[Column]:
    """The columns that can keep the latency targets at all, with the quickest of the other role."""
    limits, inf = problem.limits, INFINITY
    tbt_s = inf if limits.tbt_s is None or Limit.TBT in elastic else limits.tbt_s
    ttfet_s = inf if limits.ttfet_s is None or Limit.TTFET in elastic else limits.ttfet_s
    e2e_s = inf if limits.e2e_s is None or Limit.E2E in elastic else limits.e2e_s
    first, last = dict.fromkeys(problem.roles, inf), dict.fromkeys(problem.roles, inf)
    for column in problem.columns:
        role = column.config.role
        first[role] = min(first.get(role, inf), column.ttfet_s)
        last[role] = min(last.get(role, inf), column.e2e_s)
    for column in problem.columns:
        others = [role for role in first if role is not column.config.role]
        least_ttfet_s = column.ttfet_s + sum(first[role] for role in others)
        least_e2e_s = column.e2e_s + sum(last[role] for role in others)
        is_early = ttfet_s == inf or least_ttfet_s <= ttfet_s
        if column.tbt_s <= tbt_s and is_early and (e2e_s == inf or least_e2e_s <= e2e_s):
            yield column


def is_large(problem: Problem) -> bool:
    """Whether it is solved to a twentieth of a per cent, not exactly."""
    return sum(one.gpus for one in problem.limits.gpus if one.min_tp == 1) > SMALL_FLEET


def bound(problem: Problem) -> float | None:
    """What no answer's objective is below: the best one's for a small fleet, for a large one that
    of the linear relaxation. None if there is no answer."""
    if not is_large(problem):
        solved = solve(problem)
        return None if solved is None else solved.answer.value(problem.objective)
    problem = replace(problem, columns=tuple(_quick_enough(problem, frozenset())))
    rows = Rows(problem, frozenset())
    rows.constrain(())
    relaxed = _relaxation(rows) if problem.columns else None
    return None if relaxed is None else relaxed.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relaxed:
    """The relaxation's value, and what one worker of each column would add to it."""

    bound: float
    reduced_costs: Sequence[float]


def _worth_while(columns: Sequence[Column], reduced_costs: Sequence[float]) -> tuple[Column, ...]:
    """The columns of the operating points that the relaxation would pay least for, each with all
    its pool sizes, and of every group its cheapest ones."""
    costs: dict[tuple[Config, float], float] = {}
    for column, cost in zip(columns, reduced_costs, strict=True):
        point = (column.config, column.load_per_s)
        relative = cost / (column.mean_w + column.peak_w)
        costs[point] = min(relative, costs.get(point, INFINITY))
    ranked = sorted(costs, key=lambda point: (costs[point], point[1]))
    kept = set(ranked[:KEPT_POINTS])
    of_group: Counter[Group] = Counter()
    for point in ranked:
        of_group[point[0].group] += 1
        if of_group[point[0].group] <= KEPT_OF_GROUP:
            kept.add(point)
    return tuple(column for column in columns if (column.config, column.load_per_s) in kept)


def _integer(rows: Rows, time_limit_s: float) -> Solved | None:
    """Hand it to HiGHS."""
    optimize, sparse = _scipy()
    at, variables, values = rows.entries
    shape = (len(rows.low), len(rows.cost))
    matrix = sparse.csr_matrix((values, (at, variables)), shape=shape)
    result = optimize.milp(
        rows.cost,
        integrality=rows.is_integer,
        bounds=optimize.Bounds([0.0] * len(rows.cost), rows.upper),
        constraints=optimize.LinearConstraint(matrix, rows.low, rows.high),
        options={
            "time_limit": time_limit_s,
            "mip_rel_gap": 5e-4 if is_large(rows.problem) else 1e-6,
        },
    )
    if result.x is None:
        if result.status == 1:
            raise TimeoutError(f"HiGHS found no answer in {time_limit_s:g} s")
        return None
    solved = _read(rows, result)
    return solved if solved.answer.load_per_s > 0 else None


def _relaxation(rows: Rows) -> _Relaxed | None:
    """The linear program with y_c = n_c / M_c; None if even that has no answer."""
    optimize, sparse = _scipy()
    ties = {rows.num + index: index for index in range(rows.num)}
    entries: tuple[list[int], list[int], list[float]] = ([], [], [])
    for row, variable, value in zip(*rows.entries, strict=True):
        if row in rows.links:
            continue
        of = ties.get(variable, variable)
        entries[0].append(row)
        entries[1].append(of)
        entries[2].append(value / max(1.0, rows.upper[of]) if variable in ties else value)
    shape = (len(rows.low), len(rows.cost))
    matrix = sparse.csr_matrix((entries[2], (entries[0], entries[1])), shape=shape)
    below, above, bounds_low, bounds_high = _sides(rows, matrix)
    costs = list(rows.cost)
    for tied, of in ties.items():
        costs[of] += rows.cost[tied] / max(1.0, rows.upper[of])
    result = optimize.linprog(
        costs,
        A_ub=sparse.vstack([below, -above]),
        b_ub=[*bounds_high, *(-low for low in bounds_low)],
        bounds=list(zip([0.0] * len(rows.cost), rows.upper, strict=True)),
        method="highs",
    )
    if result.x is None:
        return None
    reduced = result.lower.marginals[: rows.num]
    return _Relaxed(bound=float(result.fun), reduced_costs=[float(cost) for cost in reduced])


def _sides(rows: Rows, matrix: Any) -> tuple[Any, Any, list[float], list[float]]:
    """The rows that are bounded from above, and those from below, with their bounds."""
    kept = [row for row in range(len(rows.low)) if row not in rows.links]
    below = [row for row in kept if rows.high[row] < INFINITY]
    above = [row for row in kept if rows.low[row] > -INFINITY]
    lows, highs = [rows.low[row] for row in above], [rows.high[row] for row in below]
    return matrix[below], matrix[above], lows, highs


def _objective_of(rows: Rows, solved: Solved) -> float:
    """The value that was minimised."""
    if rows.elastic:
        return sum(rows.cost[rows.slacks[key]] * over for key, over in solved.slack.items())
    return solved.answer.value(rows.problem.objective)


def _read(rows: Rows, result: Any) -> Solved:
    counts = {
        column: round(float(result.x[index]))
        for index, column in enumerate(rows.columns)
        if result.x[index] > 0.5
    }
    slack = {key: float(result.x[index]) for key, index in rows.slacks.items()}
    gap = float(result.mip_gap) if result.mip_gap is not None else 0.0
    return Solved(answer=answer_of(rows.problem, counts, gap), slack=slack)


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise ConfigError("planning needs scipy: pip install 'conserve-sglang[plan]'") from error
    return optimize, sparse
