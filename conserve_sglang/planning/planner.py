"""From a request to a plan: candidates by the integer program, the choice by the simulator."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.diagnosis import Binding, bindings
from conserve_sglang.planning.giving_way import GivingWay, fits
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.neighbours import Counts
from conserve_sglang.planning.plan import (
    Infeasible,
    Option,
    Plan,
    excess_of,
    is_within,
)
from conserve_sglang.planning.problem import Config, Objective
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.score import Fleet, Score, simulate
from conserve_sglang.planning.shortlist import Candidate, Shortlist, more_headroom, shortlist
from conserve_sglang.planning.variants import policies_for

Told = Callable[[str], None]
"""What is being done now, for a progress bar."""

MOST_CANDIDATES = 8
NUM_FOR_POLICIES = 2
"""The best fleets are tried under every policy that fits them."""
MOST_TRIMS = 8
LOAD_STEPS = 5
NUM_REPEATS = 2
MOST_REPEATED = 6
"""So many options at most are tried with other seeds, to find one that lasts."""


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

    def at_load(self, option: Option, rate_per_s: float, seed: int | None = None) -> Score:
        """The option's figures at another load, or with another seed."""
        request = self.request
        fleet = Fleet(counts=option.counts, policy=option.policy, hardware=self.hardware())
        own = request.seed if seed is None else seed
        return simulate(fleet, request.load, rate_per_s, request.targets, own)


def make_plan(request: Request, told: Told = lambda _: None) -> Plan | Infeasible:
    """The best fleet for a request, or why there is none."""
    told("computing operating points, solving integer programs")
    found = shortlist(request)
    started = time.perf_counter()
    options = tuple(_tried(request, found, told)) if found.candidates else ()
    kept = [option for option in options if is_within(request, option)]
    is_rescued = not kept
    if not kept:
        told("looking for limits that would have to give way")
        way = GivingWay(request, found.problems, Bench(request)).tried(options)
        options += tuple(option for option in way.options if fits(request, option))
        kept = [option for option in options if is_within(request, option)]
        if not kept:
            nearest = min(options, key=lambda option: excess_of(request, option), default=None)
            return Infeasible(request=request, remedies=way.remedies, nearest=nearest)
    chosen, repeats, fragile = _lasting(request, kept, told)
    simulation_s = time.perf_counter() - started
    told("looking for what holds it back")
    started = time.perf_counter()
    held_back, gap = ((), 0.0) if is_rescued else _held_back(found)
    return Plan(
        request=request,
        chosen=chosen,
        options=options,
        bindings=held_back,
        repeats=repeats,
        gap=gap,
        is_rescued=is_rescued,
        fragile=fragile,
        num_columns=found.num_columns,
        optimizer_s=found.columns_s + found.solve_s + time.perf_counter() - started,
        simulation_s=simulation_s,
    )


def _held_back(found: Shortlist) -> tuple[tuple[Binding, ...], float]:
    """What costs the program's first choice something, and how far that is from the best."""
    best = found.candidates[0]
    return bindings(found.problem_of(best), best.answer), best.answer.gap


def _lasting(
    request: Request, kept: list[Option], told: Told
) -> tuple[Option, tuple[Score, ...], tuple[Option, ...]]:
    """The best option that keeps the limits with other arrivals too, its figures there, and those
    before it that do not; the best of all if the first few all break one."""
    bench = Bench(request)
    ranked = sorted(kept, key=lambda option: option.value(request.objective))
    first: tuple[Option, tuple[Score, ...]] | None = None
    fragile: list[Option] = []
    for option in ranked[:MOST_REPEATED]:
        told(f"simulating other seeds of {_brief(dict(option.counts))}")
        rate = option.score.load_per_s
        scores = tuple(
            bench.at_load(option, rate, seed=request.seed + number)
            for number in range(1, NUM_REPEATS + 1)
        )
        first = first or (option, scores)
        if all(is_within(request, replace(option, score=score)) for score in scores):
            return option, scores, tuple(fragile)
        fragile.append(option)
    assert first is not None
    return *first, ()


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
