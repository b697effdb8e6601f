"""What is one step smaller than a change that is known to be enough."""

from typing import Protocol

from conserve_sglang.planning.diagnosis import given
from conserve_sglang.planning.neighbours import Counts, num_short, shortage
from conserve_sglang.planning.plan import (
    Found,
    Option,
    conceded,
    excess_of,
    is_within,
)
from conserve_sglang.planning.remedy import STEP, Change, size_of
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.rows import Limit
from conserve_sglang.planning.score import sizes


class Goal(Protocol):
    """A fleet that does with one step less is sought among those that are `worth` a simulation at
    `rate_per_s`. `is_deep`: farther away than one move, too."""

    most_short: int
    rate_per_s: float
    step: float
    is_deep: bool

    def worth(self, counts: Counts, peak_w: float) -> bool:
        """Whether a fleet could do at all, by what is known without a simulation."""

    def found(self, option: Option) -> Found | None:
        """What a fleet does with, if that is one step less; None if it fails."""

    def badness(self, option: Option) -> float:
        """How far a fleet that fails is from it."""


class FewerGpus:
    """One GPU fewer, or for a fleet that is simulated at a smaller scale one worker of those."""

    is_deep = True

    def __init__(self, request: Request, found: Found) -> None:
        self._request = request
        counts = dict(found.option.counts)
        _, scale = sizes(counts)
        self._now = num_short(request, counts)
        self.step = float(max(1, round(1 / scale)))
        self.most_short = max(0, self._now - round(self.step))
        self.rate_per_s = found.option.score.load_per_s

    def worth(self, counts: Counts, peak_w: float) -> bool:
        """Few enough GPUs, within the power budget."""
        return num_short(self._request, counts) <= self.most_short and _is_fed(
            self._request, peak_w
        )

    def found(self, option: Option) -> Found | None:
        """The GPUs that are missing still."""
        if not does(self._request, option):
            return None
        return Found(changes=gpus_short(self._request, option.counts), option=option)

    def badness(self, option: Option) -> float:
        """By how much limits are broken."""
        return excess_of(self._request, option)


class MoreLoad:
    """A per cent more load."""

    most_short, is_deep, step = 0, False, STEP

    def __init__(self, request: Request, found: Found) -> None:
        self._request = request
        (change,) = found.changes
        self.rate_per_s = min(change.given, change.needed * (1 + STEP))

    def worth(self, counts: Counts, peak_w: float) -> bool:
        """Of the GPUs there are, within the power budget."""
        return not shortage(self._request, counts) and _is_fed(self._request, peak_w)

    def found(self, option: Option) -> Found | None:
        """The load that it carries."""
        if not is_within(self._request, option):
            return None
        return less_load(self._request, option)

    def badness(self, option: Option) -> float:
        """By how much limits are broken at that load."""
        return excess_of(self._request, option)


class LessGiven:
    """Targets and budgets that give way, all together by a per cent of what is needed less."""

    most_short, is_deep, step = 0, False, STEP

    def __init__(self, request: Request, found: Found) -> None:
        self._request = request
        self._limits = frozenset(change.limit for change in found.changes)
        self._most = size_of(found.changes) - STEP
        self.rate_per_s = found.option.score.load_per_s

    def worth(self, counts: Counts, peak_w: float) -> bool:
        """Of the GPUs there are, and the watts alone are no larger a change."""
        request = self._request
        if shortage(request, counts):
            return False
        if Limit.PEAK_W not in self._limits:
            return _is_fed(request, peak_w)
        budget = request.power_budget_w
        assert budget is not None
        return peak_w <= budget or self._size(Limit.PEAK_W, budget, peak_w) <= self._most

    @staticmethod
    def _size(limit: Limit, now: float, needed: float) -> float:
        change = Change(limit=limit, tier="", given=now, needed=needed, relative=needed / now - 1)
        return change.size

    def found(self, option: Option) -> Found | None:
        """What it breaks, if that is small enough and of these limits."""
        changes = conceded(self._request, option)
        if changes is None or any(one.limit not in self._limits for one in changes):
            return None
        if changes and size_of(changes) > self._most:
            return None
        return Found(changes=changes, option=option)

    def badness(self, option: Option) -> float:
        """By how much limits are broken."""
        return excess_of(self._request, option)


def goal_of(request: Request, found: Found) -> Goal | None:
    """One step less of the same limits; None for GPUs or load together with other limits, of which
    it is not tried."""
    limits = {change.limit for change in found.changes}
    if limits == {Limit.GPUS} and not does(request, found.option):
        return None
    if limits == {Limit.GPUS}:
        return FewerGpus(request, found)
    if limits == {Limit.LOAD}:
        return MoreLoad(request, found)
    return None if limits & {Limit.GPUS, Limit.LOAD} else LessGiven(request, found)


def does(request: Request, option: Option) -> bool:
    """Whether a fleet keeps all limits, in a run that can tell: its arrivals go on for longer than
    a conversation may take. A shorter one is over before an overload shows."""
    score, targets = option.score, request.targets
    most_s = max(targets.ttfet_s or 0.0, targets.e2e_s or 0.0)
    goes_on_s = score.num_conversations / (score.load_per_s * score.scale)
    return is_within(request, option) and goes_on_s > most_s


def gpus_short(request: Request, counts: Counts) -> tuple[Change, ...]:
    """The GPUs that a fleet needs more."""
    limits = request.limits()
    whole = given(limits, Limit.GPUS) or 1.0
    changes = []
    for tier, more in sorted(shortage(request, counts).items()):
        now = given(limits, Limit.GPUS, tier) or 0.0
        changes.append(
            Change(limit=Limit.GPUS, tier=tier, given=now, needed=now + more, relative=more / whole)
        )
    return tuple(changes)


def less_load(request: Request, option: Option, fails_at_per_s: float | None = None) -> Found:
    """The load that a fleet carries, as a change of the one that is demanded."""
    demanded, carried = request.load.rate_per_s, option.score.load_per_s
    change = Change(
        limit=Limit.LOAD,
        tier="",
        given=demanded,
        needed=carried,
        relative=carried / demanded - 1,
    )
    changes = (change,) if carried < demanded else ()
    return Found(changes=changes, option=option, fails_at_per_s=fails_at_per_s)


def _is_fed(request: Request, peak_w: float) -> bool:
    budget = request.power_budget_w
    return budget is None or peak_w <= budget
