"""Chooses among fleets that a short run found good enough, by judging them (`judging`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.judging import judge
from conserve_sglang.planning.plan import Option, excess_of, is_within
from conserve_sglang.planning.problem import Config, Objective
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.score import Fleet

MOST_JUDGED = 8
"""So many fleets at most are judged for one choice."""
LIKE = 0.05
"""Of a large fleet's GPUs: with so many more or fewer it is like another one."""
NUM_RIVALS = 1
"""Of fleets that keep the limits, so many beside the first one."""
NEAR, MOST_NEAR = 0.1, 3
"""By how much of a limit a short run may break it, and so many fleets are judged all the same."""
MOST_NEAREST = 4
"""Of fleets that break a limit, so many are judged to tell what limits they would keep."""
LOWER_LOADS = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.5)
"""Where the most load is sought: shares of what a short run thought that are tried."""


class Choosing:
    """Judges options of a request; what was judged once is known."""

    def __init__(
        self,
        request: Request,
        hardware: Mapping[Config, Hardware],
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._request, self._hardware, self._told = request, hardware, told
        self._judged: dict[object, Option] = {}

    def best_of(self, options: Iterable[Option]) -> Option | None:
        """The best one that keeps all limits, judged; None if none of the first few does. One more
        fleet is judged if it looked better in its short run than the best one does when judged;
        and where none does, those that broke a limit by little in a short run."""
        unjudged = [one for one in options if not one.is_judged]
        kept = [one for one in unjudged if is_within(self._request, one)]
        best = self._best_kept(kept)
        if best is not None:
            return best
        near = [one for one in unjudged if one not in kept]
        near = [one for one in near if excess_of(self._request, one) <= NEAR]
        for option in sorted(near, key=lambda one: excess_of(self._request, one))[:MOST_NEAR]:
            judged = self.judged(option)
            if is_within(self._request, judged):
                return judged
        return None

    def _best_kept(self, kept: Iterable[Option]) -> Option | None:
        objective = self._request.objective
        found: dict[object, Option] = {}  # the best of each fleet that keeps them
        failed: list[Option] = []
        for option in sorted(kept, key=lambda one: one.value(objective)):
            best = min((one.value(objective) for one in found.values()), default=None)
            is_settled = best is not None and best <= option.value(objective)
            num = len(found) + len(failed)
            if num >= MOST_JUDGED or is_settled or len(found) > NUM_RIVALS:
                break
            if _fleet(option) in found or any(_is_like(option, one) for one in failed):
                continue
            judged = self.judged(option)
            if is_within(self._request, judged):
                found[_fleet(option)] = judged
            else:
                failed.append(judged)
        return min(found.values(), key=lambda one: one.value(objective), default=None)

    def judged(self, option: Option) -> Option:
        """An option with the figures that it is judged by: of all seeds if it keeps the limits,
        else up to the first that breaks one. Where the most load is sought, at as much as it
        keeps."""
        if option.is_judged:
            return option
        if _key(option) not in self._judged:
            shares = LOWER_LOADS if self._request.objective is Objective.LOAD else (1.0,)
            for share in shares:
                judged = self.at_load(option, option.score.load_per_s * share)
                if is_within(self._request, judged):
                    break
            self._judged[_key(option)] = judged
        return self._judged[_key(option)]

    def at_load(self, option: Option, rate_per_s: float, *, is_whole: bool = False) -> Option:
        """An option judged at a load; with `is_whole` by all seeds in any case."""
        request = self._request
        workers = " + ".join(
            f"{num} {one.tier} {one.role.value}" for one, num in option.counts.items()
        )
        self._told(f"judging {workers}, {option.policy.name}")
        score, by_seed = judge(
            Fleet(counts=option.counts, policy=option.policy, hardware=self._hardware),
            request,
            rate_per_s,
            option.score.e2e_s,
            lambda one: not is_whole and not is_within(request, replace(option, score=one)),
        )
        return replace(option, score=score, by_seed=by_seed)

    def nearest_of(self, options: Iterable[Option]) -> list[Option]:
        """Those that break limits least, judged by all seeds."""
        ranked = sorted(options, key=lambda option: excess_of(self._request, option))
        return [
            self.at_load(option, option.score.load_per_s, is_whole=True)
            for option in ranked[:MOST_NEAREST]
        ]

    def peak_w(self, counts: Mapping[Config, int]) -> float:
        """What a fleet's GPUs may draw."""
        return sum(self._hardware[one].peak_w * one.tp * count for one, count in counts.items())

    def known(self, options: Iterable[Option]) -> tuple[Option, ...]:
        """The same options, with what was judged of them."""
        return tuple(self._judged.get(_key(option), option) for option in options)


def _key(option: Option) -> object:
    params = sorted(option.policy.params.items())
    return option.policy.name, repr(params), _fleet(option), option.score.load_per_s


def _is_like(option: Option, failed: Option) -> bool:
    """Whether a large fleet, simulated at a smaller scale, can hardly be told from one that failed:
    about as many GPUs in the same roles."""
    same_roles = {one.role for one in option.counts} == {one.role for one in failed.counts}
    is_near = abs(option.num_gpus - failed.num_gpus) <= LIKE * failed.num_gpus
    return option.score.scale < 1 and same_roles and is_near


def _fleet(option: Option) -> object:
    return frozenset(option.counts.items())
