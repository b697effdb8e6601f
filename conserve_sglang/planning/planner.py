"""From a request to a plan: candidates by the integer program, the choice by the simulator."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.choosing import Choosing
from conserve_sglang.planning.diagnosis import Binding, bindings
from conserve_sglang.planning.giving_way import GivingWay, fits
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.judging import check_level
from conserve_sglang.planning.neighbours import Counts
from conserve_sglang.planning.plan import (
    Infeasible,
    Option,
    Plan,
    excess_of,
    is_within,
)
from conserve_sglang.planning.problem import Config, Objective
from conserve_sglang.planning.remedy import Remedy
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.score import Fleet, Score, simulate
from conserve_sglang.planning.settling import settled
from conserve_sglang.planning.shortlist import Candidate, Shortlist, more_headroom, shortlist
from conserve_sglang.planning.variants import policies_for

Told = Callable[[str], None]
"""What is being done now, for a progress bar."""

MOST_CANDIDATES = 8
NUM_FOR_POLICIES = 2
"""The best fleets are tried under every policy that fits them."""
MOST_TRIMS = 8
LOAD_STEPS = 5
MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """Where fleets of a request are tried."""

    request: Request

    def hardware(self) -> dict[Config, Hardware]:
        """Every configuration the request allows."""
        return {one.config(role): one for one in self.request.hardware for role in Role}

    def peak_w(self, counts: Counts) -> float:
        """What the fleet's GPUs may draw."""
        hardware = self.hardware()
        return sum(hardware[config].peak_w * config.tp * count for config, count in counts.items())

    def try_out(
        self, candidate: Candidate, policy: PolicyChoice, counts: dict[Config, int] | None = None
    ) -> Option:
        """Simulate a candidate's fleet, or other counts of it, at the load that is asked for."""
        counts = counts or candidate.counts
        is_own = counts == candidate.counts
        rate_per_s = self.request.load.rate_per_s
        option = replace(
            self.played(candidate.variant.name, policy, counts, rate_per_s),
            label=candidate.label or "best by approximation" if is_own else "trimmed",
            approximate_w=candidate.answer.mean_w if is_own else None,
            approximate_ttfet_s=candidate.answer.ttfet_s if is_own else None,
        )
        return (
            self.at_most_load(option, candidate.answer.load_per_s) if self._seeks_load else option
        )

    def played(
        self, variant: str, policy: PolicyChoice, counts: Counts, rate_per_s: float
    ) -> Option:
        """Simulate a fleet at a load."""
        request = self.request
        fleet = Fleet(counts=counts, policy=policy, hardware=self.hardware())
        score = simulate(fleet, request.load, rate_per_s, request.targets, request.seed)
        return Option(
            label="one move away",
            variant=variant,
            policy=policy,
            counts=counts,
            peak_w=self.peak_w(counts),
            score=score,
        )

    @property
    def _seeks_load(self) -> bool:
        return self.request.objective is Objective.LOAD

    def at_most_load(self, option: Option, about_per_s: float) -> Option:
        """The option at the most load at which it keeps all limits, by bisection around what the
        program thought."""
        low, high = 0.0, about_per_s * 1.5
        best = replace(option, score=self.at_load(option, about_per_s * 0.25))
        for _ in range(LOAD_STEPS):
            middle = (low + high) / 2
            tried = replace(option, score=self.at_load(option, middle))
            if is_within(self.request, tried):
                low, best = middle, tried
            else:
                high = middle
        return best

    def at_load(self, option: Option, rate_per_s: float) -> Score:
        """The option's figures at another load, by a short run."""
        request = self.request
        fleet = Fleet(counts=option.counts, policy=option.policy, hardware=self.hardware())
        return simulate(fleet, request.load, rate_per_s, request.targets, request.seed)


def make_plan(
    request: Request, told: Told = lambda _: None, *, is_brief: bool = False
) -> Plan | Infeasible:
    """The best fleet for a request, or why there is none; with `is_brief` changes that are enough
    are not made smaller."""
    check_level(request.load, request.targets.level)
    if request.is_below_gaps:
        return Infeasible(request=request, remedies=(), impossible=request.gaps_note)
    told("computing operating points, solving integer programs")
    found, started, bench = shortlist(request), time.perf_counter(), Bench(request)
    choosing = Choosing(request, bench.hardware(), told)
    options = tuple(_tried(request, found, told)) if found.candidates else ()
    chosen = choosing.best_of(options)
    if chosen is None:
        options += tuple(_larger(request, found, options, told))
        chosen = choosing.best_of(options)
    if is_rescued := chosen is None:
        told("looking for limits that would have to give way")
        chosen, options, remedies = _given_way(request, found, options, choosing, is_brief)
        if chosen is None:
            judged = [one for one in options if one.is_judged and fits(request, one)]
            nearest = min(judged, key=lambda option: excess_of(request, option), default=None)
            return Infeasible(request=request, remedies=remedies, nearest=nearest)
    simulation_s = time.perf_counter() - started
    told("looking for what holds it back")
    started = time.perf_counter()
    held_back, gap = ((), 0.0) if is_rescued else _held_back(found, chosen)
    return Plan(
        request=request,
        chosen=chosen,
        options=(chosen, *(one for one in choosing.known(options) if one is not chosen)),
        bindings=held_back,
        gap=gap,
        is_rescued=is_rescued,
        num_columns=found.num_columns,
        optimizer_s=found.columns_s + found.solve_s + time.perf_counter() - started,
        simulation_s=simulation_s,
    )


def _given_way(
    request: Request,
    found: Shortlist,
    options: tuple[Option, ...],
    choosing: Choosing,
    is_brief: bool,
) -> tuple[Option | None, tuple[Option, ...], tuple[Remedy, ...]]:
    """A fleet that does after all, or the changes that would be enough for one; and all fleets.
    What looks good enough by a short run, and fails when judged, is known the next time."""
    for _ in range(MOST_ROUNDS):
        bench = Judged(Bench(request), choosing)
        way = GivingWay(request, found.problems, bench).tried(
            choosing.known(options), shrinks=not is_brief
        )
        options += tuple(option for option in way.options if fits(request, option))
        chosen = choosing.best_of(choosing.known(options))
        options = choosing.known(options)
        if chosen is not None or not any(is_within(request, option) for option in options):
            break
    if chosen is not None:
        return chosen, options, ()
    nearest = choosing.nearest_of(options)
    remedies = settled(request, way.remedies, way.fleets, nearest, choosing)
    return None, (*nearest, *options), remedies


@dataclass(frozen=True, slots=True)
class Judged:
    """A bench that knows what was judged."""

    bench: Bench
    choosing: Choosing

    def try_out(self, candidate: Candidate, policy: PolicyChoice) -> Option:
        """At the demanded load."""
        return self._known(self.bench.try_out(candidate, policy))

    def played(
        self, variant: str, policy: PolicyChoice, counts: Counts, rate_per_s: float
    ) -> Option:
        """A fleet at a load."""
        return self._known(self.bench.played(variant, policy, counts, rate_per_s))

    def at_load(self, option: Option, rate_per_s: float) -> Score:
        """The same fleet at another load."""
        return self.bench.at_load(option, rate_per_s)

    def peak_w(self, counts: Counts) -> float:
        """What a fleet may draw."""
        return self.bench.peak_w(counts)

    def _known(self, option: Option) -> Option:
        (known,) = self.choosing.known([option])
        return known


def _larger(
    request: Request, found: Shortlist, options: Sequence[Option], told: Told
) -> Iterator[Option]:
    """Fleets with more headroom than those that were tried."""
    bench, known = Bench(request), [option.counts for option in options]
    for candidate in more_headroom(request, found) if found.candidates else ():
        if candidate.counts not in known:
            told(f"simulating {_brief(candidate.counts)}, {candidate.variant.policy.name}")
            known.append(candidate.counts)
            yield bench.try_out(candidate, candidate.variant.policy)


def _held_back(found: Shortlist, chosen: Option) -> tuple[tuple[Binding, ...], float]:
    """What costs the program's first choice something, and how far that is from the best. More GPUs
    of a tier would not help where the chosen fleet leaves some of it unused."""
    best = found.candidates[0]
    problem = found.problem_of(best)
    used: dict[str, int] = {}
    for config, count in chosen.counts.items():
        used[config.tier] = used.get(config.tier, 0) + config.tp * count
    there = {one.tier: one.gpus for one in problem.limits.gpus if one.min_tp == 1}
    told = (
        one
        for one in bindings(problem, best.answer)
        if one.limit is not Limit.GPUS or used.get(one.tier, 0) >= there.get(one.tier, 0)
    )
    return tuple(told), best.answer.gap


def _tried(request: Request, found: Shortlist, told: Told) -> Iterator[Option]:
    """Candidates in the simulator; more headroom while none is good enough, fewer workers where
    one is."""
    bench = Bench(request)
    options: list[tuple[Option, Candidate]] = []

    def attempt(candidate: Candidate, policy: PolicyChoice, **more: dict[Config, int]) -> Option:
        told(f"simulating {_brief(more.get('counts') or candidate.counts)}, {policy.name}")
        option = bench.try_out(candidate, policy, **more)
        options.append((option, candidate))
        return option

    for candidate in found.candidates[:MOST_CANDIDATES]:
        yield attempt(candidate, candidate.variant.policy)
    if not any(is_within(request, option) for option, _ in options):
        for candidate in more_headroom(request, found):
            yield attempt(candidate, candidate.variant.policy)
    ranked = sorted(options, key=lambda pair: _rank(request, pair[0]))
    for _, candidate in ranked[:NUM_FOR_POLICIES]:
        for policy in policies_for(candidate.variant, request.targets.tbt_s)[1:]:
            yield attempt(candidate, policy)
    option, candidate = min(options, key=lambda pair: _rank(request, pair[0]))
    if is_within(request, option) and request.objective is not Objective.LOAD:
        for counts in _trims(option):
            tried = attempt(candidate, option.policy, counts=counts)
            yield tried
            for policy in _others(request, tried, candidate):
                yield attempt(candidate, policy, counts=counts)


def _others(request: Request, option: Option, candidate: Candidate) -> Iterator[PolicyChoice]:
    """Other policies for a fleet that keeps the limits: when judged it may need one of them."""
    for policy in policies_for(candidate.variant, request.targets.tbt_s):
        if is_within(request, option) and policy != option.policy:
            yield policy


def _trims(option: Option) -> Iterator[dict[Config, int]]:
    """One worker fewer of each kind."""
    for config, count in list(option.counts.items())[:MOST_TRIMS]:
        fewer = {one: num - (one == config) for one, num in option.counts.items()}
        fewer = {one: num for one, num in fewer.items() if num}
        if {one.role for one in fewer} == {one.role for one in option.counts} and count:
            yield fewer


def _rank(request: Request, option: Option) -> tuple[bool, float, float]:
    is_broken = not is_within(request, option)
    first, second = option.value(request.objective)
    return (is_broken, excess_of(request, option), second) if is_broken else (False, first, second)


def _brief(counts: dict[Config, int]) -> str:
    return " + ".join(
        f"{count} {config.tier} {config.role.value}" for config, count in counts.items()
    )
