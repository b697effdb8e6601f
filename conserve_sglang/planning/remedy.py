"""What would make a request feasible, how large a change that is, and how well it is known to be
the smallest.

*Smallest* is said of changes of the same limits, and of what the simulator says with the request's
seed. Of GPUs: the fewest more, of whatever tier, and of fleets that were simulated and need
equally many the one that may draw the fewest watts. Of a target, a budget or the load: the least
relative change, in steps of 1 % of what is needed (`STEP`); of several together, the sum of the
logarithms. Granted without a trial: where more workers or higher caps keep the limits on GPUs and
power they do no harm; so one step less is tried, and what is smaller still is not. A `Proof` says
on how many fleets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.planning.rows import Limit

UNITS = {
    Limit.PEAK_W: "W",
    Limit.MEAN_W: "kWh a day",
    Limit.TTFET: "s",
    Limit.TBT: "s",
    Limit.E2E: "s",
    Limit.LOAD: "conversations/s",
}
_SPELLED = {
    Limit.PEAK_W: "a power budget",
    Limit.MEAN_W: "an energy budget",
    Limit.TTFET: "a TTFET target",
    Limit.TBT: "a last-turn TBT target",
    Limit.E2E: "an E2E target",
    Limit.LOAD: "a load",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A limit that gives way: from `given` to `needed`, in its unit (`UNITS`; GPUs: their number);
    `relative` is by how much of it. For GPUs `tier` says which."""

    limit: Limit
    tier: str
    given: float
    needed: float
    relative: float

    @property
    def text(self) -> str:
        """In words."""
        if self.limit is Limit.GPUS:
            more = self.needed - self.given
            return f"{more:.0f} more GPU{'s' if more > 1.5 else ''} in tier {self.tier}"
        unit = UNITS[self.limit]
        return (
            f"{_SPELLED[self.limit]} of {self.enough:.4g} {unit} instead of {self.given:.4g}"
            f" ({self.relative:+.1%})"
        )

    @property
    def enough(self) -> float:
        """What is needed, to four digits, and not less than that."""
        if self.needed <= 0 or self.limit is Limit.GPUS:
            return self.needed
        step = 10.0 ** (math.floor(math.log10(self.needed)) - 3)
        whole = self.needed / step
        less, more = math.floor(whole + 1e-9), math.ceil(whole - 1e-9)
        return (less if self.limit is Limit.LOAD else more) * step

    @property
    def size(self) -> float:
        """How large a change it is: twice as much and half as much are equally large."""
        return abs(math.log1p(max(-0.999999, self.relative)))


Changes = tuple[Change, ...]
"""Limits that give way together."""


def size_of(changes: Changes) -> float:
    """How large some changes are in all; GPUs count alike, whatever their tiers."""
    more = sum(change.relative for change in changes if change.limit is Limit.GPUS)
    rest = sum(change.size for change in changes if change.limit is not Limit.GPUS)
    return math.log1p(more) + rest


MEANING = (
    "All are enough in the long runs that choices are judged by. Smallest, of changes of the same"
    " limits, in short runs: the fewest"
    " more GPUs of whatever tier; of a target, a budget or the load the least relative change, to"
    " 1 %. One step less was tried where it says so; that still less fails too is granted, and so"
    " is that more workers and higher caps do no harm. A plan with the change made may miss by a"
    " few per cent, as policies take parameters from the targets."
)
STEP = 0.01
"""What a target, a budget or a load is told to, as a share of what is needed."""


class Tried(Enum):
    """How much of what is one step smaller was simulated, all of it failing. `ALL`: every fleet
    within reach, under every policy; `NEAR`: every fleet one move away, and maybe more; `PART`: the
    bound on simulations was reached before. Within reach is what moves lead to (`neighbours`), less
    what does no more than another one, by what is granted."""

    ALL = "all"
    NEAR = "near"
    PART = "part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Why a change is held to be the smallest: one `step` less (GPUs; else a share of what is
    needed) was tried on `num_tried` fleets and failed on each. `most`: how many conversations may
    be simulated to make all remedies of an answer smaller."""

    tried: Tried
    num_tried: int
    step: float
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Changes that together are enough for a fleet that was simulated. `proof`: that less is not;
    None where that was not tried. `is_widened`: less is enough in short runs, not in long ones."""

    changes: Changes
    proof: Proof | None = None
    is_widened: bool = False

    @property
    def text(self) -> str:
        """The changes in words."""
        return " and ".join(change.text for change in self.changes)

    @property
    def size(self) -> float:
        """How large it is in all."""
        return size_of(self.changes)

    @property
    def evidence(self) -> str:
        """How well it is known to be the smallest, in words."""
        if self.is_widened:
            return (
                "enough in the long run; not shown to be the smallest: less was tried in short runs"
                " only, and was enough there"
            )
        if self.proof is None:
            return "enough; not shown to be the smallest: less was not tried"
        many = self.proof.num_tried
        fleets = f"{many} fleet{'' if many == 1 else 's'}"
        if self.proof.tried is Tried.PART:
            return (
                "enough; not shown to be the smallest: the bound of"
                f" {self.proof.most:,} simulated conversations was reached"
                + (f", after {fleets} with {self._less}, which fail" if many else "")
            )
        if self.proof.tried is Tried.NEAR:
            return f"the smallest found: {self._less} was tried and fails, on the {fleets} nearby"
        if not many:
            return f"the smallest: no fleet within reach could do with {self._less}"
        return (
            f"the smallest: {self._less} was tried and fails, on every fleet within reach ({many})"
        )

    @property
    def _less(self) -> str:
        """One step less."""
        assert self.proof is not None
        (limit, *others) = {change.limit for change in self.changes}
        step = self.proof.step
        if limit is Limit.GPUS:
            return f"{step:.0f} GPU{'' if step == 1 else 's'} fewer"
        if limit is Limit.LOAD:
            return f"{step:.0%} more load"
        return f"{step:.0%} less of {'them' if others else 'it'}"


def smallest(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """By size; without those that change more limits, and more of them, than another one."""
    kept: list[tuple[frozenset[tuple[Limit, str]], Remedy]] = []
    for remedy in sorted(remedies, key=lambda one: (one.size, len(one.changes))):
        limits = frozenset((change.limit, change.tier) for change in remedy.changes)
        if not any(less <= limits for less, _ in kept):
            kept.append((limits, remedy))
    return tuple(remedy for _, remedy in kept)
