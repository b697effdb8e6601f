"""Where no fleet will do: which limits would have to give way, tried out in the simulator.

The integer program says which fleets need least of a limit, by its approximations; what they need
is what the simulator says of them. So a change that is told is enough for a fleet that was played.
One of these fleets may keep all limits after all: then the approximations were too careful.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.diagnosis import Change, Remedy, given, least, size_of
from conserve_sglang.planning.plan import Option, answers_enough, concession, is_within, margins_of
from conserve_sglang.planning.problem import Objective, Problem
from conserve_sglang.planning.program import is_large
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.score import Score
from conserve_sglang.planning.shortlist import Candidate, scaled_load

Problems = Sequence[tuple[Variant, Problem]]
HEADROOMS = (0.8, 1.0, 1.25, 1.6, 2.5)
FEW_HEADROOMS = (1.0, 1.6)
"""For which multiples of the load fleets are sought that a limit gives way for; few if large."""
LOAD_STEPS = 6


class Tries(Protocol):
    """Where fleets are played."""

    def try_out(self, candidate: Candidate, policy: PolicyChoice) -> Option:
        """At the demanded load."""

    def at_load(self, option: Option, rate_per_s: float) -> Score:
        """At another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Fleets that were played, and the changes that would each be enough for one of them."""

    options: tuple[Option, ...]
    remedies: tuple[Remedy, ...]


class GivingWay:
    """Lets limits of a request give way, and plays the fleets that come of it."""

    def __init__(self, request: Request, problems: Problems, bench: Tries) -> None:
        self._request, self._problems, self._bench = request, problems, bench
        self._played: dict[object, Option] = {}

    def tried(self) -> Given:
        """Let each limit give way alone; where that never helps, all of them together."""
        limits = [
            one for one in Limit if any(given(p.limits, one) is not None for _, p in self._problems)
        ]
        remedies = [remedy for one in limits if (remedy := self._least(frozenset({one})))]
        if not remedies:
            whole = frozenset(limits)
            several = (whole - {Limit.LOAD, Limit.GPUS}, whole - {Limit.LOAD}, whole)
            found = [remedy for elastic in several if (remedy := self._least(elastic))]
            remedies = sorted(found, key=size_of)[:1]
        return Given(options=tuple(self._played.values()), remedies=tuple(remedies))

    def _least(self, elastic: frozenset[Limit]) -> Remedy:
        """The smallest change of these limits that is enough for a fleet; empty without one."""
        enough = [
            remedy
            for candidate, gpus in self._candidates(elastic)
            if (remedy := self._needed(candidate, gpus, elastic))
        ]
        return min(enough, key=size_of, default=())

    def _candidates(self, elastic: frozenset[Limit]) -> Iterator[tuple[Candidate, Remedy]]:
        """Of the variant that needs least, fleets for some multiples of the load, and the GPUs that
        they need more."""
        best = least(self._problems, elastic)
        if best is None:
            return
        headrooms: Sequence[float] = FEW_HEADROOMS if is_large(best.problem) else HEADROOMS
        if best.problem.objective is Objective.LOAD or len(elastic) > 1:
            headrooms = (1.0,)
        elif elastic == {Limit.LOAD}:
            headrooms = (1.0, HEADROOMS[-1])  # the last is the fleet that carries most
        for headroom in headrooms:
            found = least([(best.variant, scaled_load(best.problem, headroom))], elastic)
            if found is not None and found.solved.answer.counts:
                yield (
                    Candidate(
                        variant=best.variant,
                        answer=found.solved.answer,
                        headroom=headroom,
                        label="limits give way",
                    ),
                    tuple(change for change in found.remedy if change.limit is Limit.GPUS),
                )

    def _play(self, candidate: Candidate) -> Option:
        key = (candidate.variant.name, *sorted(map(repr, candidate.counts.items())))
        if key not in self._played:
            self._played[key] = self._bench.try_out(candidate, candidate.variant.policy)
        return self._played[key]

    def _needed(self, candidate: Candidate, gpus: Remedy, elastic: frozenset[Limit]) -> Remedy:
        """What has to give way for a fleet, by the simulator; empty if that is not enough."""
        option = self._play(candidate)
        if elastic == {Limit.LOAD}:
            return self._less_load(option, candidate.answer.load_per_s)
        broken = [margin for margin in margins_of(self._request, option) if margin.share < 0]
        is_enough = answers_enough(option.score, self._request.targets)
        if not is_enough or any(not math.isfinite(margin.value) for margin in broken):
            return ()
        told = tuple(concession(margin) for margin in broken)
        return () if any(one.limit not in elastic for one in told) else (*gpus, *told)

    def _less_load(self, option: Option, about_per_s: float) -> Remedy:
        """The most load at which a fleet keeps all limits, by bisection around what the program
        thinks that it carries."""
        demanded = self._request.load.rate_per_s
        low, high = 0.0, min(demanded, 2 * about_per_s)
        for _ in range(LOAD_STEPS):
            middle = (low + high) / 2
            tried = replace(option, score=self._bench.at_load(option, middle))
            low, high = (middle, high) if is_within(self._request, tried) else (low, middle)
        if low <= 0:
            return ()
        relative = low / demanded - 1
        return (Change(limit=Limit.LOAD, tier="", given=demanded, needed=low, relative=relative),)


def fits(request: Request, option: Option) -> bool:
    """Whether there are enough GPUs for a fleet."""
    return all(
        sum(
            config.tp * count
            for config, count in option.counts.items()
            if config.tier == one.tier and config.tp >= one.min_tp
        )
        <= one.gpus
        for one in request.limits().gpus
    )


def smallest(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """By size; without those that change more limits, and more of them, than another one."""
    kept: list[tuple[frozenset[tuple[Limit, str]], Remedy]] = []
    for remedy in sorted(remedies, key=lambda one: (size_of(one), len(one))):
        limits = frozenset((change.limit, change.tier) for change in remedy)
        if not any(less <= limits for less, _ in kept):
            kept.append((limits, remedy))
    return tuple(remedy for _, remedy in kept)
