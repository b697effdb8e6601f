"""What the optimizer is asked: columns to choose from and limits to keep. Values only.

A *column* is one way to run one worker: hardware, role, knobs and how much load it carries. All
of a worker's quantities are settled in its column, whatever formulas they came from, so that
choosing is linear: how many workers of which columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.worker import Role


class Objective(Enum):
    """What is best. `TOKENS_PER_JOULE`: at the demanded load, the least mean power, which is the
    most tokens per joule, since the load's tokens are given. `LOAD`: the most conversations per
    second within the limits. `WATTS`: at the demanded load, the least peak power."""

    TOKENS_PER_JOULE = "tokens-per-joule"
    LOAD = "load"
    WATTS = "watts"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Config:
    """Hardware, role and knobs of a worker. None leaves a knob as the device has it.

    `profile` is the name of the profile that its times and watts come from.
    """

    tier: str
    role: Role
    tp: int
    power_cap_w: float | None
    sm_clock_mhz: int | None
    profile: str

    @property
    def group(self) -> tuple[str, Role]:
        """Workers of one tier and role are all alike: one column of each group is chosen."""
        return self.tier, self.role


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One worker at one operating point.

    `load_per_s`: conversations a second it carries. `mean_w`, `peak_w`: of all its GPUs, at that
    load and at most. `ttfet_s`, `e2e_s`: its role's part of a conversation's TTFET and E2E, and
    `tbt_s` the last-turn TBT, all at the SLO's percentile, waits included. `min_count`: the pool of
    equal workers is at least so large, which its waits count on. `busy`: share of time it computes;
    `batch`: mean number of turns that decode at once (0 on a prefiller).
    """

    config: Config
    load_per_s: float
    mean_w: float
    peak_w: float
    ttfet_s: float
    tbt_s: float
    e2e_s: float = 0.0
    min_count: int = 1
    busy: float = 0.0
    batch: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLimit:
    """Workers of `tier` with `tp` of at least `min_tp` may use `gpus` GPUs in all.

    With powers of two as sizes, these limits (one for each size) say exactly what fits on hosts.
    """

    tier: str
    min_tp: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an answer must keep; None is no limit.

    `load_per_s`: conversations a second to be carried (for `Objective.LOAD`, at least).
    `peak_w`: sum of what the workers may draw at most. `mean_w`: sum of their mean power.
    """

    load_per_s: float
    gpus: tuple[GpuLimit, ...]
    peak_w: float | None = None
    mean_w: float | None = None
    ttfet_s: float | None = None
    tbt_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Choose counts of `columns`. Each role of `roles` must carry the whole load: prefill and
    decode one phase each, mixed both. `kind_cost`, in the objective's unit, is what every kind of
    worker (tier and role) is charged, so that no lone worker of another kind is added for little.
    """

    columns: tuple[Column, ...]
    roles: frozenset[Role]
    limits: Limits
    objective: Objective
    kind_cost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How many workers of which columns, and what they sum up to.

    `kinds_cost`: what its kinds of workers are charged. `gap`: how far the objective may be from
    the best one, as a share of it; 0 if it is proven best.
    """

    counts: Mapping[Column, int]
    load_per_s: float
    mean_w: float
    peak_w: float
    ttfet_s: float
    tbt_s: float
    e2e_s: float = 0.0
    kinds_cost: float = 0.0
    gap: float = 0.0

    @property
    def configs(self) -> frozenset[Config]:
        """The configurations it uses."""
        return frozenset(column.config for column in self.counts)

    def value(self, objective: Objective) -> float:
        """The objective's value, kinds charged; less is better."""
        if objective is Objective.LOAD:
            return self.kinds_cost - self.load_per_s
        watts = self.mean_w if objective is Objective.TOKENS_PER_JOULE else self.peak_w
        return self.kinds_cost + watts


def answer_of(problem: Problem, counts: Mapping[Column, int], gap: float = 0.0) -> Answer:
    """Sum up a choice: the load of the role that carries least, TTFET and E2E of the slowest
    pair."""
    used = {column: count for column, count in counts.items() if count > 0}
    carried = dict.fromkeys(problem.roles, 0.0)
    slowest = dict.fromkeys(problem.roles, 0.0)
    longest = dict.fromkeys(problem.roles, 0.0)
    for column, count in used.items():
        role = column.config.role
        carried[role] += column.load_per_s * count
        slowest[role] = max(slowest[role], column.ttfet_s)
        longest[role] = max(longest[role], column.e2e_s)
    return Answer(
        counts=used,
        load_per_s=min(carried.values(), default=0.0),
        mean_w=sum(column.mean_w * count for column, count in used.items()),
        peak_w=sum(column.peak_w * count for column, count in used.items()),
        ttfet_s=sum(slowest.values()),
        tbt_s=max((column.tbt_s for column in used), default=0.0),
        e2e_s=sum(longest.values()),
        kinds_cost=problem.kind_cost * len({column.config.group for column in used}),
        gap=gap,
    )


def undominated(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns that can be part of a best answer: of two of a group with the same `tp`, one that
    is nowhere better than the other, and somewhere worse or later in line, is left out."""
    kept: dict[tuple[str, Role, int], list[Column]] = {}
    order = sorted(columns, key=lambda column: (-column.load_per_s, column.mean_w, column.peak_w))
    for column in order:
        rivals = kept.setdefault((*column.config.group, column.config.tp), [])
        if not any(_is_no_worse(rival, column) for rival in rivals):
            rivals.append(column)
    chosen = {id(column) for rivals in kept.values() for column in rivals}
    return tuple(column for column in columns if id(column) in chosen)


def _is_no_worse(one: Column, other: Column) -> bool:
    return (
        one.load_per_s >= other.load_per_s
        and one.mean_w <= other.mean_w
        and one.peak_w <= other.peak_w
        and one.ttfet_s <= other.ttfet_s
        and one.tbt_s <= other.tbt_s
        and one.e2e_s <= other.e2e_s
        and one.min_count <= other.min_count
    )
