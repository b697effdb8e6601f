"""Makes a change that is enough smaller, until one step less fails on the fleets nearby.

What may be simulated for that is bounded (`MOST_PLAYED` conversations for all changes of an answer
together); a bound that is reached is told in the proof.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Protocol

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning.demand import Variant
from conserve_sglang.planning.goals import Goal, does, goal_of, gpus_short, less_load
from conserve_sglang.planning.neighbours import Choice, Counts, Neighbours, num_short, shrunk
from conserve_sglang.planning.plan import Found, Option, is_within
from conserve_sglang.planning.problem import Objective
from conserve_sglang.planning.remedy import STEP, Changes, Proof, Remedy, Tried
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit

MOST_PLAYED, MOST_PLAYED_LARGE = 9_000, 12_800
"""So many conversations are simulated, with small and with large inventories, to make the changes
of an answer smaller: 30 simulations of up to seven workers, or 8 of more than 40. The last one may
exceed it."""
_WEIGHTS = {Limit.GPUS: 4.0, Limit.LOAD: 2.0}
"""How much of the bound a change may take, against 1 of the others, and a half of several limits
together."""


class Plays(Protocol):
    """Where fleets are simulated."""

    def peak_w(self, counts: Counts) -> float:
        """What a fleet may draw."""

    def played(
        self, variant: str, policy: PolicyChoice, counts: Counts, rate_per_s: float
    ) -> Option:
        """A fleet at a load."""


class Shrinking:
    """Makes changes smaller. `played`: what it has simulated, less loads than demanded left out;
    `fleets`: for which one a change is enough."""

    def __init__(
        self,
        request: Request,
        variants: Mapping[str, Variant],
        bench: Plays,
        options: Iterable[Option],
        most: int = MOST_PLAYED,
    ) -> None:
        self._request, self._variants, self._bench, self._most = request, variants, bench, most
        self._num = self._stop = 0
        self._known = {
            (self._choice(option).key, option.score.load_per_s): option for option in options
        }
        self.played: list[Option] = []
        self.fleets: dict[Changes, Option] = {}

    def settled(self, founds: Iterable[Found]) -> list[Remedy]:
        """Each as small as it was found to be. Stops where a fleet keeps all limits after all."""
        left = sorted(founds, key=lambda found: -self._weight(found))
        remedies = []
        while left:
            weights = list(map(self._weight, left))
            share = (self._most - self._num) * weights[0] / sum(weights)
            self._stop = self._num + round(share)
            remedies.append(self._settled(left.pop(0)))
            if not remedies[-1].changes:
                break
        return remedies

    @staticmethod
    def _weight(found: Found) -> float:
        weight = _WEIGHTS.get(found.changes[0].limit, 1.0)
        return weight if len({one.limit for one in found.changes}) == 1 else 0.5

    def _settled(self, found: Found) -> Remedy:
        if goal_of(self._request, found) is None:
            return self._remedy(found, None)
        found = self._narrowed(found)
        while found.changes:
            goal = goal_of(self._request, found)
            assert goal is not None
            smaller, proof = self._sought(found, goal)
            if smaller is None:
                return self._remedy(self._of_fewest_watts(found), proof)
            found = self._narrowed(smaller)
        return Remedy(changes=())

    def _remedy(self, found: Found, proof: Proof | None) -> Remedy:
        self.fleets[found.changes] = found.option
        return Remedy(changes=found.changes, proof=proof)

    def _of_fewest_watts(self, found: Found) -> Found:
        """Of the fleets that were simulated and do with as few GPUs."""
        request, option = self._request, found.option
        if found.changes[0].limit is not Limit.GPUS:
            return found
        num, rate = num_short(request, option.counts), option.score.load_per_s
        rivals = [
            other
            for (_, at), other in self._known.items()
            if at == rate and num_short(request, other.counts) == num and does(request, other)
        ]
        best = min([option, *rivals], key=lambda one: one.peak_w)
        return Found(changes=gpus_short(request, best.counts), option=best)

    def _narrowed(self, found: Found) -> Found:
        """As far as the fleet itself can do with less."""
        limit = found.changes[0].limit if found.changes else None
        if limit is Limit.GPUS:
            return self._in_proportion(found)
        return self._at_more_load(found) if limit is Limit.LOAD else found

    def _in_proportion(self, found: Found) -> Found:
        """A fleet of fewer and fewer workers, each kind in proportion, by bisection."""
        request, first = self._request, found.option
        low, high = 0, num_short(request, first.counts)
        step = 1
        if (goal := goal_of(request, found)) is not None:
            step = round(goal.step)
        while high - low > step and self._has_more:
            middle = (low + high) // 2
            counts = shrunk(request, first.counts, middle)
            option = (
                None
                if counts is None
                else self._play(replace(self._choice(first), counts=counts), first.score.load_per_s)
            )
            if option is None or not does(request, option):
                low = middle
                continue
            high = num_short(request, option.counts)
            found = Found(changes=gpus_short(request, option.counts), option=option)
            if not high:
                break
        return found

    def _resized(self, option: Option, counts: Counts) -> Option:
        choice = replace(self._choice(option), counts=counts)
        return self._play(choice, option.score.load_per_s)

    def _at_more_load(self, found: Found) -> Found:
        """The same fleet at more and more load: doubled steps until it fails, then bisection."""
        demanded = self._request.load.rate_per_s
        step = 2 * STEP
        while self._has_more and found.changes:
            low, high = found.option.score.load_per_s, found.fails_at_per_s
            if high is not None and high <= low * (1 + STEP):
                break
            rate = (low + high) / 2 if high is not None else min(demanded, low * (1 + step))
            step *= 2
            option = self._play(self._choice(found.option), rate)
            if is_within(self._request, option):
                found = less_load(self._request, option, high)
            else:
                found = replace(found, fails_at_per_s=rate)
        return found

    def _sought(self, found: Found, goal: Goal) -> tuple[Found | None, Proof]:
        """A fleet that does with one step less: those one move away first, then those beside the
        best of them."""
        order = count()
        moves = Neighbours(self._request, self._variants, self._is_powered)
        start = self._choice(found.option)
        heap: list[tuple[int, float, int, Choice]] = [(0, 0.0, next(order), start)]
        seen, num, tried = {start.key}, 0, Tried.PART
        while heap and self._goes_on(heap[0][0], goal):
            level, _, _, choice = heapq.heappop(heap)
            tried = Tried.NEAR if level else tried
            for near in moves.of(choice, goal.most_short):
                if near.key in seen:
                    continue
                seen.add(near.key)
                if not goal.worth(near.counts, self._bench.peak_w(near.counts)):
                    if num_short(self._request, near.counts) > goal.most_short:
                        heapq.heappush(heap, (0, 0.0, next(order), near))
                    continue
                if not self._may_play(near, goal.rate_per_s):
                    return None, self._proof(goal, tried, num)
                option = self._play(near, goal.rate_per_s)
                num += 1
                if (smaller := goal.found(option)) is not None:
                    return smaller, self._proof(goal, tried, num)
                heapq.heappush(heap, (1, goal.badness(option), next(order), near))
        return None, self._proof(goal, Tried.NEAR if heap else Tried.ALL, num)

    @staticmethod
    def _goes_on(level: int, goal: Goal) -> bool:
        return level == 0 or goal.is_deep

    def _proof(self, goal: Goal, tried: Tried, num: int) -> Proof:
        return Proof(tried=tried, num_tried=num, step=goal.step, most=self._most)

    @property
    def _is_powered(self) -> bool:
        request = self._request
        return request.power_budget_w is not None or request.mean_power_w is not None

    # simulations

    @property
    def _has_more(self) -> bool:
        return self._num < self._stop

    def _choice(self, option: Option) -> Choice:
        variant = self._variants[option.variant]
        return Choice(variant=variant, policy=option.policy, counts=option.counts)

    def _may_play(self, choice: Choice, rate_per_s: float) -> bool:
        return self._has_more or (choice.key, rate_per_s) in self._known

    def _is_at_issue(self, rate_per_s: float) -> bool:
        request = self._request
        return request.objective is Objective.LOAD or rate_per_s >= request.load.rate_per_s

    def _play(self, choice: Choice, rate_per_s: float) -> Option:
        key = (choice.key, rate_per_s)
        if key not in self._known:
            option = self._bench.played(
                choice.variant.name, choice.policy, choice.counts, rate_per_s
            )
            self._num += option.score.num_conversations
            self._known[key] = option
            if self._is_at_issue(rate_per_s):
                self.played.append(option)
        return self._known[key]
