"""A plan: what was chosen, what else there was, and how sure that is. Values only."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning.diagnosis import Binding
from conserve_sglang.planning.inventory import ALL_ROLES
from conserve_sglang.planning.problem import Config, Objective
from conserve_sglang.planning.program import SMALL_FLEET
from conserve_sglang.planning.remedy import Change, Changes, Remedy, size_of
from conserve_sglang.planning.request import KWH_A_DAY, Request, Targets
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.score import MOST_GROWTH, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A fleet under a policy, simulated. `approximate_w`, `approximate_ttfet_s`: what the integer
    program thought of it, None for a fleet it did not propose. `peak_w`: what its GPUs may draw.
    `by_seed`: of a fleet that was judged, each seed's figures, `score` being the worst of them."""

    label: str
    variant: str
    policy: PolicyChoice
    counts: Mapping[Config, int]
    peak_w: float
    score: Score
    approximate_w: float | None = None
    approximate_ttfet_s: float | None = None
    by_seed: tuple[Score, ...] = ()

    @property
    def is_judged(self) -> bool:
        """Whether its figures are of the long run; else of a short one."""
        return self.score.runs.is_judged

    @property
    def num_gpus(self) -> int:
        """GPUs it uses."""
        return sum(config.tp * count for config, count in self.counts.items())

    def value(self, objective: Objective) -> tuple[float, float]:
        """Less is better; the second decides between equals."""
        score = self.score
        joules = math.inf if score.tokens_per_joule <= 0 else 1 / score.tokens_per_joule
        if objective is Objective.LOAD:
            return -score.load_per_s, joules
        return (
            (joules, self.peak_w)
            if objective is Objective.TOKENS_PER_JOULE
            else (
                self.peak_w,
                joules,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How far a figure is from its limit, as a share of the limit; below zero: it is broken."""

    name: str
    limit: float
    value: float
    unit: str

    @property
    def share(self) -> float:
        """What is left."""
        return (self.limit - self.value) / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The best of a narrower choice: one tier alone, or no caps. None: not feasible, because of
    `why`."""

    label: str
    option: Option | None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """The chosen fleet if a profile is wrong: what is assumed, what becomes of it, and whether the
    integer program would still choose the same."""

    label: str
    score: Score
    is_same_choice: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to a request: the best fleet of those that were judged and keep all limits.
    `is_rescued`: by the integer program's approximations nothing keeps all limits, in the simulator
    this fleet does."""

    request: Request
    chosen: Option
    options: tuple[Option, ...]
    bindings: tuple[Binding, ...]
    comparisons: tuple[Comparison, ...] = ()
    load_sweep: tuple[Score, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    gap: float = 0.0
    is_rescued: bool = False
    num_columns: int = 0
    optimizer_s: float = 0.0
    simulation_s: float = 0.0

    @property
    def margins(self) -> tuple[Margin, ...]:
        """How far the chosen one is from each limit."""
        return margins_of(self.request, self.chosen)

    @property
    def rejected(self) -> tuple[Option, ...]:
        """Fleets that were judged and break a limit, the nearest ones first."""
        found = [one for one in self.options if one.is_judged and not is_within(self.request, one)]
        return tuple(sorted(found, key=lambda option: excess_of(self.request, option)))

    @property
    def proven(self) -> str:
        """How good the integer program's first choice is known to be, in words."""
        num_gpus = self.request.inventory.num_gpus
        if self.is_rescued:
            return (
                "by the integer program's approximations nothing keeps all limits, so a better"
                " choice than this one may exist"
            )
        if num_gpus <= SMALL_FLEET:
            return "no choice is better than the integer program's first one, by its approximations"
        return (
            f"{num_gpus} GPUs are more than the {SMALL_FLEET} that are planned exactly: by its"
            f" approximations the best choice is at most {self.gap:.2%} better than the integer"
            " program's first one"
        )

    @property
    def doubtful_caps(self) -> tuple[str, ...]:
        """GPUs whose chosen power caps may be refused: the least cap they accept is not known."""
        inventory = self.request.inventory
        capped = {one.tier for one in self.chosen.counts if one.power_cap_w is not None}
        gpus = [
            tier.gpu for tier in inventory.tiers if tier.name in capped and not tier.least_cap_w
        ]
        return tuple(dict.fromkeys(gpus))

    @property
    def runner_ups(self) -> tuple[Option, ...]:
        """The other options that keep all limits, best first."""
        kept = [option for option in self.options if is_within(self.request, option)]
        rest = [option for option in kept if option is not self.chosen]
        return tuple(sorted(rest, key=lambda option: option.value(self.request.objective)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No fleet will do. `remedies`: what would make one, the smallest change first. `nearest`: the
    fleet that came closest in the simulator, if any got so far. `impossible`: why none can, where
    that is known beforehand."""

    request: Request
    remedies: tuple[Remedy, ...]
    nearest: Option | None = None
    impossible: str = ""

    @property
    def no_remedy(self) -> str:
        """What is said where there is no remedy."""
        tiers = self.request.inventory.tiers
        narrowed = [tier.name for tier in tiers if set(tier.roles) != set(ALL_ROLES)]
        needed = "other GPUs or another model are needed"
        if narrowed:
            needed += f", or more roles than the inventory gives {' and '.join(narrowed)}"
        return f"no change of limits was found that helps: {needed}"

    @property
    def reason(self) -> str:
        """In a sentence."""
        if self.impossible:
            return self.impossible
        none = "no choice of these GPUs keeps all limits"
        if self.nearest is None:
            return none
        broken = [
            f"{margin.name} {_said(margin)} against {margin.limit:.4g}"
            for margin in margins_of(self.request, self.nearest)
            if margin.share < 0
        ]
        if not self.nearest.score.is_steady:
            broken.append("no headroom: with 5% more load it falls behind")
        said = ", ".join(broken) or f"only {self.nearest.score.answered:.1%} answered"
        return f"{none}; the nearest that was simulated has {said}"


def _said(margin: Margin) -> str:
    return f"{margin.value:.4g} {margin.unit}" if math.isfinite(margin.value) else "without end"


def margins_of(request: Request, option: Option) -> tuple[Margin, ...]:
    """An option against each limit of a request."""
    targets, score = request.targets, option.score
    rows = (
        (f"TTFET p{targets.level * 100:g}", targets.ttfet_s, score.ttfet_s, "s"),
        (f"last-turn TBT p{targets.level * 100:g}", targets.tbt_s, score.tbt_s, "s"),
        (f"E2E p{targets.level * 100:g}", targets.e2e_s, score.e2e_s, "s"),
        ("peak power", request.power_budget_w, option.peak_w, "W"),
        ("energy", _a_day(request.mean_power_w), score.mean_w * KWH_A_DAY, "kWh a day"),
    )
    return tuple(
        Margin(name=name, limit=limit, value=value, unit=unit)
        for name, limit, value, unit in rows
        if limit is not None
    )


def _a_day(mean_w: float | None) -> float | None:
    """The energy budget is asked for in kWh a day."""
    return None if mean_w is None else mean_w * KWH_A_DAY


_LIMITS = {
    "TTFET": Limit.TTFET,
    "last-turn TBT": Limit.TBT,
    "E2E": Limit.E2E,
    "peak power": Limit.PEAK_W,
    "energy": Limit.MEAN_W,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Changes that are enough for a fleet that was simulated. `fails_at_per_s`: where the load
    gives way, a higher one at which that fleet fails."""

    changes: Changes
    option: Option
    fails_at_per_s: float | None = None


def concessions(request: Request, options: Iterable[Option]) -> tuple[Found, ...]:
    """What limits would have to be for a fleet that was simulated to keep them, the smallest change
    first, three at most; fleets that leave too many conversations unanswered are left out."""
    found: dict[tuple[tuple[Limit, float], ...], Found] = {}
    for option in options:
        changes = conceded(request, option)
        if changes:
            key = tuple((one.limit, one.needed) for one in changes)
            found.setdefault(key, Found(changes=changes, option=option))
    return tuple(sorted(found.values(), key=lambda one: size_of(one.changes))[:3])


def conceded(request: Request, option: Option) -> Changes | None:
    """The limits that a fleet breaks, as wide as they would have to be; None if no width is
    enough."""
    broken = [margin for margin in margins_of(request, option) if margin.share < 0]
    is_finite = all(math.isfinite(margin.value) for margin in broken)
    is_carried = option.score.is_steady and answers_enough(option.score, request.targets)
    if not is_finite or not is_carried:
        return None
    return tuple(concession(margin) for margin in broken)


def concession(margin: Margin) -> Change:
    """A limit that is broken, as wide as it would have to be."""
    limit = next(limit for name, limit in _LIMITS.items() if margin.name.startswith(name))
    return Change(
        limit=limit,
        tier="",
        given=margin.limit,
        needed=margin.value,
        relative=margin.value / margin.limit - 1,
    )


def is_within(request: Request, option: Option) -> bool:
    """Whether an option keeps all limits, conversations answered included, in the long run if it
    was judged."""
    is_kept = all(margin.share >= 0 for margin in margins_of(request, option))
    return is_kept and option.score.is_steady and answers_enough(option.score, request.targets)


def answers_enough(score: Score, targets: Targets) -> bool:
    """Whether as many conversations are answered as must keep the targets."""
    return score.answered >= targets.level


def excess_of(request: Request, option: Option) -> float:
    """By how much limits are broken, summed up."""
    broken = [max(0.0, -margin.share) for margin in margins_of(request, option)]
    growing = max(0.0, (option.score.growth or 0.0) - MOST_GROWTH)
    return sum(broken) + max(0.0, request.targets.level - option.score.answered) + growing
