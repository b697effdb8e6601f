"""The integer program's variables and rows, put together; see `program`."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.problem import Column, Config, Objective, Problem

INFINITY = math.inf
Group = tuple[str, Role]


class Limit(Enum):
    """A limit that may give way."""

    LOAD = "load"
    GPUS = "gpus"
    PEAK_W = "power budget"
    MEAN_W = "energy budget"
    TTFET = "ttfet"
    TBT = "tbt"
    E2E = "e2e"


class Rows:
    """Variables and rows as they are put together."""

    def __init__(self, problem: Problem, elastic: frozenset[Limit]) -> None:
        self.problem, self.elastic = problem, elastic
        self.columns = problem.columns
        self.groups: dict[Group, list[int]] = {}
        for index, column in enumerate(self.columns):
            self.groups.setdefault(column.config.group, []).append(index)
        self.num = len(self.columns)
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.is_integer: list[int] = []
        self.slacks: dict[tuple[Limit, str], int] = {}
        self.entries: tuple[list[int], list[int], list[float]] = ([], [], [])
        self.links: set[int] = set()  # rows that tie counts to choices
        self.low: list[float] = []
        self.high: list[float] = []
        self._variables()

    # variables: n in 0..num-1, y in num..2 num-1, then the load and the slacks

    def _variables(self) -> None:
        seeks_load = self.problem.objective is Objective.LOAD and not self.elastic
        for column in self.columns:
            self._variable(self._cost_of(column), float(self._most(column)), is_integer=True)
        for _ in self.columns:
            used = 0.0 if self.elastic else self.problem.kind_cost
            self._variable(used, 1.0, is_integer=True)
        self.load = self._variable(-1.0, INFINITY) if seeks_load else None
        for limit in sorted(self.elastic, key=lambda limit: limit.value):
            tiers = sorted({one.tier for one in self.problem.limits.gpus})
            for name in tiers if limit is Limit.GPUS else ("",):
                most = 0.999 if limit is Limit.LOAD else INFINITY  # some load is left
                self.slacks[limit, name] = self._variable(
                    1.0 / self._scale(limit), most, is_integer=limit is Limit.GPUS
                )

    def _scale(self, limit: Limit) -> float:
        """What an excess is divided by to be relative."""
        limits = self.problem.limits
        if limit is Limit.GPUS:
            return float(sum(one.gpus for one in limits.gpus if one.min_tp == 1)) or 1.0
        values = {
            Limit.LOAD: 1.0,  # its slack is a share of the demanded load
            Limit.PEAK_W: limits.peak_w,
            Limit.MEAN_W: limits.mean_w,
            Limit.TTFET: limits.ttfet_s,
            Limit.TBT: limits.tbt_s,
            Limit.E2E: limits.e2e_s,
        }
        return values[limit] or 1.0

    def _variable(self, cost: float, upper: float, is_integer: bool = False) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.is_integer.append(int(is_integer))
        return len(self.cost) - 1

    def _cost_of(self, column: Column) -> float:
        if self.elastic:
            return 0.0
        costs = {Objective.TOKENS_PER_JOULE: column.mean_w, Objective.WATTS: column.peak_w}
        return costs.get(self.problem.objective, 0.0)

    def _most(self, column: Column) -> int:
        """The most workers that can be wanted: what the GPUs allow and the load needs."""
        limits = self.problem.limits
        most = math.inf
        if Limit.GPUS not in self.elastic:
            gpus = [
                one.gpus
                for one in limits.gpus
                if one.tier == column.config.tier and one.min_tp <= column.config.tp
            ]
            most = min(gpus, default=0) // column.config.tp
        if self.problem.objective is not Objective.LOAD or self.elastic:
            needed = math.ceil(limits.load_per_s / column.load_per_s - 1e-9)
            most = min(most, max(needed, column.min_count))
        return int(most)

    # rows

    def _row(self, entries: Mapping[int, float], low: float, high: float) -> None:
        rows, variables, values = self.entries
        for variable, value in entries.items():
            rows.append(len(self.low))
            variables.append(variable)
            values.append(value)
        self.low.append(low)
        self.high.append(high)

    def _slack(self, limit: Limit, name: str = "", size: float = 1.0) -> dict[int, float]:
        index = self.slacks.get((limit, name))
        return {} if index is None else {index: size}

    def constrain(self, forbidden: Sequence[frozenset[Config]]) -> None:
        """Add all rows."""
        self._loads()
        self._choices()
        self._gpus()
        self._sums()
        self._latencies()
        for configs in forbidden:
            self._forbid(configs)

    def _loads(self) -> None:
        limits = self.problem.limits
        for role in sorted(self.problem.roles, key=lambda role: role.value):
            carried = {
                index: column.load_per_s
                for index, column in enumerate(self.columns)
                if column.config.role is role
            }
            if self.load is not None:
                self._row({**carried, self.load: -1.0}, 0.0, INFINITY)
            if limits.load_per_s:
                shares = {index: load / limits.load_per_s for index, load in carried.items()}
                self._row({**shares, **self._slack(Limit.LOAD)}, 1.0, INFINITY)

    def _choices(self) -> None:
        for index, column in enumerate(self.columns):
            used = self.num + index
            self.links.update((len(self.low), len(self.low) + 1))
            self._row({index: 1.0, used: -self.upper[index]}, -INFINITY, 0.0)
            self._row({index: 1.0, used: -float(column.min_count)}, 0.0, INFINITY)
        for members in self.groups.values():
            self._row({self.num + index: 1.0 for index in members}, -INFINITY, 1.0)

    def _gpus(self) -> None:
        for limit in self.problem.limits.gpus:
            used = {
                index: float(column.config.tp)
                for index, column in enumerate(self.columns)
                if column.config.tier == limit.tier and column.config.tp >= limit.min_tp
            }
            if used:
                slack = self._slack(Limit.GPUS, limit.tier, -1.0)
                self._row({**used, **slack}, -INFINITY, float(limit.gpus))

    def _sums(self) -> None:
        limits = self.problem.limits
        if limits.peak_w is not None:
            peak = {index: column.peak_w for index, column in enumerate(self.columns)}
            self._row({**peak, **self._slack(Limit.PEAK_W, size=-1.0)}, -INFINITY, limits.peak_w)
        if limits.mean_w is not None:
            mean = {index: column.mean_w for index, column in enumerate(self.columns)}
            self._row({**mean, **self._slack(Limit.MEAN_W, size=-1.0)}, -INFINITY, limits.mean_w)

    def _latencies(self) -> None:
        limits = self.problem.limits
        if limits.tbt_s is not None:
            slack = self._slack(Limit.TBT, size=-1.0)
            for members in self.groups.values():
                tbt = {self.num + index: self.columns[index].tbt_s for index in members}
                self._row({**tbt, **slack}, -INFINITY, limits.tbt_s)
        if limits.ttfet_s is not None:
            slack = self._slack(Limit.TTFET, size=-1.0)
            for members in self._paths():
                ttfet = {self.num + index: self.columns[index].ttfet_s for index in members}
                self._row({**ttfet, **slack}, -INFINITY, limits.ttfet_s)
        if limits.e2e_s is not None:
            slack = self._slack(Limit.E2E, size=-1.0)
            for members in self._paths():
                e2e = {self.num + index: self.columns[index].e2e_s for index in members}
                self._row({**e2e, **slack}, -INFINITY, limits.e2e_s)

    def _paths(self) -> list[list[int]]:
        """What a conversation may meet: each prefill group with each decode group, or one group."""
        by_role: dict[Role, list[list[int]]] = {}
        for (_, role), members in self.groups.items():
            by_role.setdefault(role, []).append(members)
        paths: list[list[int]] = [[]]
        for role in sorted(self.problem.roles, key=lambda role: role.value):
            paths = [[*path, *group] for path in paths for group in by_role.get(role, [])]
        return paths

    def _forbid(self, configs: frozenset[Config]) -> None:
        """At least one configuration of the set is not used, or one beside it is."""
        entries = {
            self.num + index: -1.0 if column.config in configs else 1.0
            for index, column in enumerate(self.columns)
        }
        self._row(entries, 1.0 - len(configs), INFINITY)
