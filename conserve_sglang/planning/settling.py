"""Judges what short runs found to be enough, and makes it larger where the long run needs more."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from conserve_sglang.planning.choosing import Choosing
from conserve_sglang.planning.goals import gpus_short, less_load
from conserve_sglang.planning.plan import Option, conceded, excess_of, is_within
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.remedy import STEP, Changes, Remedy, smallest
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit

LESS_LOAD = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Shares of the load that a short run thought a fleet carries."""
MOST_GROWN = 4
LARGE, GROWN_BY = 20, 0.2
"""A fleet grows by a worker of one kind, and a larger one by a share of all of its kinds."""


def settled(
    request: Request,
    remedies: Iterable[Remedy],
    fleets: Mapping[Changes, Option],
    nearest: Iterable[Option],
    choosing: Choosing,
) -> tuple[Remedy, ...]:
    """The remedies that are enough when judged, the smallest first: each for the fleet that it was
    found with, and what the `nearest` fleets, judged already, would do with."""
    found = [
        judged
        for one in remedies
        if one.changes in fleets
        and (judged := _settled(request, one, fleets[one.changes], choosing)) is not None
    ]
    for option in nearest:
        if not gpus_short(request, option.counts) and (changes := conceded(request, option)):
            found.append(Remedy(changes=changes))
    return smallest(found)


def _settled(request: Request, remedy: Remedy, option: Option, choosing: Choosing) -> Remedy | None:
    limits = {change.limit for change in remedy.changes}
    if limits == {Limit.LOAD}:
        changes = _less_load(request, option, choosing)
    elif limits == {Limit.GPUS}:
        changes = _more_gpus(request, option, choosing)
    else:
        judged = choosing.at_load(option, option.score.load_per_s, is_whole=True)
        broken = conceded(request, judged)
        changes = None if broken is None else (*gpus_short(request, option.counts), *broken)
    if not changes:
        return None
    found = Remedy(changes=changes, proof=remedy.proof)
    return (
        found if found.size <= remedy.size + STEP else replace(found, proof=None, is_widened=True)
    )


def _less_load(request: Request, option: Option, choosing: Choosing) -> Changes | None:
    for share in LESS_LOAD:
        judged = choosing.at_load(option, option.score.load_per_s * share)
        if is_within(request, judged):
            return less_load(request, judged).changes
    return None


def _more_gpus(request: Request, option: Option, choosing: Choosing) -> Changes | None:
    rate = option.score.load_per_s
    judged = choosing.at_load(option, rate)
    for _ in range(MOST_GROWN):
        if is_within(request, judged):
            return gpus_short(request, judged.counts)
        tried = []
        for counts in _grown(judged.counts):
            larger = replace(option, counts=counts, peak_w=choosing.peak_w(counts))
            tried.append(choosing.at_load(larger, rate))
            if is_within(request, tried[-1]):
                break
        judged = min(tried, key=lambda one: excess_of(request, one))
    return gpus_short(request, judged.counts) if is_within(request, judged) else None


def _grown(counts: Mapping[Config, int]) -> Iterator[dict[Config, int]]:
    """With a worker more of one kind, each kind in its turn; with more of all if they are many."""
    if sum(counts.values()) > LARGE:
        yield {one: math.ceil(count * (1 + GROWN_BY)) for one, count in counts.items()}
        return
    for config, count in counts.items():
        yield {**counts, config: count + 1}
