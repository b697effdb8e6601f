"""How often which lengths and gaps come, in bins that double or so: 0, 1-2-5, 10-20-50, ..."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from conserve_sglang.workload.plan import ConversationPlan

STEPS = (1, 2, 5)
DECADES = range(-1, 9)  # a tenth of a second, up to as many tokens as no context has
TOOL_GAP = "tool gap"
EDGES = tuple(float(f"{step}e{decade}") for decade in DECADES for step in STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """`count` values are at least `low` and below `high`."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One quantity's bins from its least to its largest value, empty ones between included; none
    where there are no values. `unit` is "turns", "tokens" or "s"."""

    name: str
    unit: str
    bins: tuple[Bin, ...]

    @property
    def num_values(self) -> int:
        """All values."""
        return sum(found.count for found in self.bins)


def histograms_of(conversations: Iterable[ConversationPlan]) -> tuple[Histogram, ...]:
    """Turns of a conversation, prompt of turn 1, all prompts, appends of later turns, outputs, and
    tool gaps before later turns."""
    plans = list(conversations)
    turns = [turn for plan in plans for turn in plan.turns]
    later = [turn for plan in plans for turn in plan.turns[1:]]
    quantities = (
        ("turns of a conversation", "turns", [len(plan.turns) for plan in plans]),
        ("prompt of turn 1", "tokens", [plan.turns[0].input_tokens for plan in plans]),
        ("prompt", "tokens", [turn.input_tokens for turn in turns]),
        ("append", "tokens", [turn.append_tokens for turn in later]),
        ("output", "tokens", [turn.output_tokens for turn in turns]),
        (TOOL_GAP, "s", [turn.gap_s for turn in later]),
    )
    return tuple(
        Histogram(name=name, unit=unit, bins=tuple(bins_of(values)))
        for name, unit, values in quantities
    )


def bins_of(values: Sequence[float]) -> Iterator[Bin]:
    """The bins of values that are not negative; the first one is below a tenth."""
    counts = Counter(bisect_right(EDGES, value) for value in values)
    edges = (0.0, *EDGES, float("inf"))
    bounds = list(pairwise(edges))
    for index in range(min(counts, default=0), max(counts, default=-1) + 1):
        low, high = bounds[index]
        yield Bin(low=low, high=high, count=counts[index])


def short(value: float) -> str:
    """A bin's end in few letters: 2000 is 2k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
