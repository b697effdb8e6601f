"""Where no fleet will do: which limits would have to give way, tried out in the simulator.

The integer program says which fleets need least of a limit, by its approximations; what they need
is what the simulator says of them. So a change that is told is enough for a fleet that was played.
One of these fleets may keep all limits after all: then the approximations were too careful. What is
enough is then made smaller (`shrinking`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.diagnosis import Least, given, least
from conserve_sglang.planning.goals import gpus_short, less_load
from conserve_sglang.planning.neighbours import shortage
from conserve_sglang.planning.plan import Found, Option, conceded, concessions, is_within
from conserve_sglang.planning.problem import Objective, Problem
from conserve_sglang.planning.program import is_large
from conserve_sglang.planning.remedy import Changes, Remedy, size_of, smallest
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.score import Score
from conserve_sglang.planning.shortlist import Candidate, scaled_load
from conserve_sglang.planning.shrinking import MOST_PLAYED, MOST_PLAYED_LARGE, Plays, Shrinking

Problems = Sequence[tuple[Variant, Problem]]
HEADROOMS = (0.8, 1.0, 1.25, 1.6, 2.5)
FEW_HEADROOMS = (1.0, 1.6)
"""For which multiples of the load fleets are sought that a limit gives way for; few if large."""
LOAD_STEPS = 6
COARSE = 0.15


class Tries(Plays, Protocol):
    """Where fleets are played."""

    def try_out(self, candidate: Candidate, policy: PolicyChoice) -> Option:
        """At the demanded load."""

    def at_load(self, option: Option, rate_per_s: float) -> Score:
        """The same fleet at another load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Fleets that were played, and the changes that would each be enough for one of them, which
    `fleets` tells; by short runs, if the bench plays these."""

    options: tuple[Option, ...]
    remedies: tuple[Remedy, ...]
    fleets: Mapping[Changes, Option] = field(default_factory=dict)


class GivingWay:
    """Lets limits of a request give way, and plays the fleets that come of it."""

    def __init__(self, request: Request, problems: Problems, bench: Tries) -> None:
        self._request, self._problems, self._bench = request, problems, bench
        self._played: dict[object, Option] = {}

    def tried(self, options: Sequence[Option] = (), *, shrinks: bool = True) -> Given:
        """Let each limit give way alone; where that never helps, all of them together; and whatever
        `options`, simulated before, would do with. Then make that smaller, unless not `shrinks`."""
        limits = [
            one for one in Limit if any(given(p.limits, one) is not None for _, p in self._problems)
        ]
        founds = [found for one in limits if (found := self._least(frozenset({one})))]
        if not founds:
            whole = frozenset(limits)
            several = (whole - {Limit.LOAD, Limit.GPUS}, whole - {Limit.LOAD}, whole)
            together = [found for elastic in several if (found := self._least(elastic))]
            founds = sorted(together, key=lambda found: size_of(found.changes))[:1]
        pool = [*options, *self._played.values()]
        if any(self._does(option) for option in pool):
            return Given(options=tuple(self._played.values()), remedies=())
        fitting = [option for option in pool if fits(self._request, option)]
        founds = [*founds, *concessions(self._request, fitting)]
        if shrinks:
            return self._shrunk(founds, pool)
        remedies = smallest(Remedy(changes=found.changes) for found in founds)
        fleets = {found.changes: found.option for found in founds}
        return Given(options=tuple(self._played.values()), remedies=remedies, fleets=fleets)

    def _shrunk(self, founds: Sequence[Found], pool: Sequence[Option]) -> Given:
        of_changes = {found.changes: found for found in founds}
        kept = smallest(Remedy(changes=changes) for changes in of_changes)
        large = any(is_large(problem) for _, problem in self._problems)
        shrinking = Shrinking(
            self._request,
            {variant.name: variant for variant, _ in self._problems},
            self._bench,
            pool,
            MOST_PLAYED_LARGE if large else MOST_PLAYED,
        )
        remedies = shrinking.settled(of_changes[one.changes] for one in kept)
        played = (*self._played.values(), *shrinking.played)
        small = smallest(one for one in remedies if one.changes)
        return Given(options=played, remedies=small, fleets=shrinking.fleets)

    def _does(self, option: Option) -> bool:
        return fits(self._request, option) and is_within(self._request, option)

    def _least(self, elastic: frozenset[Limit]) -> Found | None:
        """The smallest change of these limits that is enough for a fleet; None without one."""
        enough: list[Found] = []
        for candidate in self._candidates(elastic):
            found = self._needed(candidate, elastic)
            if found is not None:
                enough.append(found)
                if elastic == {Limit.GPUS}:
                    break  # for more load they are more
        return min(enough, key=lambda found: size_of(found.changes), default=None)

    def _candidates(self, elastic: frozenset[Limit]) -> Iterator[Candidate]:
        """Of the variant that needs least, fleets for some multiples of the load."""
        best = least(self._problems, elastic)
        if best is None:
            return
        headrooms: Sequence[float] = FEW_HEADROOMS if is_large(best.problem) else HEADROOMS
        if best.problem.objective is Objective.LOAD or len(elastic) > 1:
            headrooms = (1.0,)
        elif elastic == {Limit.LOAD}:
            headrooms = (1.0, HEADROOMS[-1])  # the last is the fleet that carries most
        for headroom in headrooms:
            found = best if headroom == 1.0 else _for_load(best, headroom, elastic)
            if found is not None and found.solved.answer.counts:
                yield Candidate(
                    variant=best.variant,
                    answer=found.solved.answer,
                    headroom=headroom,
                    label="limits give way",
                )

    def _play(self, candidate: Candidate) -> Option:
        key = (candidate.variant.name, *sorted(map(repr, candidate.counts.items())))
        if key not in self._played:
            self._played[key] = self._bench.try_out(candidate, candidate.variant.policy)
        return self._played[key]

    def _needed(self, candidate: Candidate, elastic: frozenset[Limit]) -> Found | None:
        """What has to give way for a fleet, by the simulator; None if that is not enough."""
        option = self._play(candidate)
        if elastic == {Limit.LOAD}:
            return self._less_load(option, candidate.answer.load_per_s)
        broken = conceded(self._request, option)
        if broken is None or any(one.limit not in elastic for one in broken):
            return None
        changes = (*gpus_short(self._request, option.counts), *broken)
        return Found(changes=changes, option=option) if changes else None

    def _less_load(self, option: Option, about_per_s: float) -> Found | None:
        """The most load at which a fleet keeps all limits, by bisection around what the program
        thinks that it carries, until it is near enough to be told from another fleet's."""
        demanded = self._request.load.rate_per_s
        low, high = 0.0, min(demanded, 2 * about_per_s)
        best = option
        for _ in range(LOAD_STEPS):
            middle = (low + high) / 2
            tried = replace(option, score=self._bench.at_load(option, middle))
            if is_within(self._request, tried):
                low, best = middle, tried
            else:
                high = middle
            if low and high - low <= COARSE * high:
                break
        fails = high if high < demanded else None
        return less_load(self._request, best, fails) if low else None


def _for_load(best: Least, headroom: float, elastic: frozenset[Limit]) -> Least | None:
    return least([(best.variant, scaled_load(best.problem, headroom))], elastic)


def fits(request: Request, option: Option) -> bool:
    """Whether there are enough GPUs for a fleet."""
    return not shortage(request, option.counts)
