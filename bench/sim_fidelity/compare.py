"""Errors of simulated against live runs by policy, and whether policies keep their order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from bench.sim_fidelity.live import Run
from conserve_sglang.core.stats import percentile

Pair = tuple[Run, Run]
"""A live run and the same in the simulator."""
Measure = Callable[[Run], list[float]]


def _of_turns(name: str) -> Measure:
    return lambda run: [getattr(turn, name) for one in run.conversations for turn in one.turns]


def _of_conversations(name: str) -> Measure:
    return lambda run: [getattr(one, name) for one in run.conversations]


MEASURES: Mapping[str, Measure] = {
    "TTFT": _of_turns("ttft_s"),
    "TBT": _of_turns("tbt_s"),
    "turn E2E": _of_turns("e2e_s"),
    "TTFET": _of_conversations("ttfet_s"),
    "E2E": _of_conversations("e2e_s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of one policy and measure, over all turns or conversations of all its runs.

    `median_error` is the median of |simulated - live| / live; `bias` the median of the signed one;
    `p10` and `p90` its spread. `of_means` is the error of the mean over all runs. `noise`: how far
    live runs lie from each other, the median of |mean of a run - mean of all| / mean of all.
    """

    live_median_s: float
    simulated_median_s: float
    median_error: float
    bias: float
    p10: float
    p90: float
    of_means: float
    noise: float


def errors_of(pairs: Sequence[Pair], measure: Measure) -> Errors:
    """Compare one policy's runs, turn by turn. Raises ValueError without any."""
    live = [value for run, _ in pairs for value in measure(run)]
    simulated = [value for _, run in pairs for value in measure(run)]
    signed = sorted(s / v - 1 for s, v in zip(simulated, live, strict=True))
    means = [fmean(measure(run)) for run, _ in pairs]
    return Errors(
        live_median_s=median(live),
        simulated_median_s=median(simulated),
        median_error=median(abs(error) for error in signed),
        bias=median(signed),
        p10=percentile(signed, 10),
        p90=percentile(signed, 90),
        of_means=fmean(simulated) / fmean(live) - 1,
        noise=median(abs(mean / fmean(means) - 1) for mean in means),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Policies by the mean of a measure, best first, live and simulated.

    `pairs_alike`: of the pairs of policies that differ live by more than `margin` (the noise of the
    runs), how many the simulator puts in the same order, and `num_pairs` of how many.
    """

    live: tuple[str, ...]
    simulated: tuple[str, ...]
    margin: float
    pairs_alike: int
    num_pairs: int


def order_of(by_policy: Mapping[str, Sequence[Pair]], measure: Measure) -> Order:
    """Whether policies come in the same order."""
    live = {
        p: fmean([v for run, _ in pairs for v in measure(run)]) for p, pairs in by_policy.items()
    }
    simulated = {
        p: fmean([v for _, run in pairs for v in measure(run)]) for p, pairs in by_policy.items()
    }
    margin = max(errors_of(pairs, measure).noise for pairs in by_policy.values())
    names = sorted(live)
    apart = [
        (a, b)
        for index, a in enumerate(names)
        for b in names[index + 1 :]
        if abs(live[a] - live[b]) > margin * min(live[a], live[b])
    ]
    alike = sum((live[a] < live[b]) == (simulated[a] < simulated[b]) for a, b in apart)
    return Order(
        live=tuple(sorted(names, key=live.__getitem__)),
        simulated=tuple(sorted(names, key=simulated.__getitem__)),
        margin=margin,
        pairs_alike=alike,
        num_pairs=len(apart),
    )


def same_places(pairs: Sequence[Pair]) -> float:
    """The share of turns that ran with the same kind of placement: through a prefiller or not."""
    turns = [
        (live_turn.prefiller is None, simulated_turn.prefiller is None)
        for live, simulated in pairs
        for live_one, simulated_one in zip(live.conversations, simulated.conversations, strict=True)
        for live_turn, simulated_turn in zip(live_one.turns, simulated_one.turns, strict=True)
    ]
    return fmean([a == b for a, b in turns])


def rounded(found: Errors | Order) -> dict[str, Any]:
    """For the record: times in milliseconds, shares to a thousandth."""
    values: dict[str, Any] = {}
    for name in found.__dataclass_fields__:
        value = getattr(found, name)
        if name.endswith("_s"):
            values[f"{name[:-2]}_ms"] = round(1e3 * value, 3)
        else:
            values[name] = round(value, 4) if isinstance(value, float) else value
    return values
