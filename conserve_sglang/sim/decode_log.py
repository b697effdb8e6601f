"""A decode batch's recent steps, from which the token gaps of each of its turns are read."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from conserve_sglang.core.stats import percentile
from conserve_sglang.sim.perf_model import run_length, steps_until


class GapRun(NamedTuple):
    """`num_gaps` consecutive token gaps: the first `first_s`, each next one `growth_s` longer."""

    first_s: float
    growth_s: float
    num_gaps: int

    @property
    def total_s(self) -> float:
        """The sum of the gaps."""
        return run_length(self.num_gaps, self.first_s, self.growth_s)

    @property
    def last_s(self) -> float:
        """The last gap, the largest of the run."""
        return self.first_s + self.growth_s * (self.num_gaps - 1)


@dataclass(slots=True)
class StepRun:
    """Steps decoded without interruption. The step before ended at `previous_end_s`, which is
    earlier than this run's start when a prefill came between. While it is decoded it may be cut
    short, which changes `num_steps` alone."""

    first_step: int
    num_steps: int
    previous_end_s: float
    start_s: float
    step_s: float
    growth_s: float

    def ended_by(self, now: float) -> "tuple[StepRun, float]":
        """Those of its steps that have ended by then, and the seconds they took."""
        num = steps_until(now - self.start_s, self.step_s, self.growth_s)
        if run_length(num, self.step_s, self.growth_s) > now - self.start_s:
            num -= 1
        num = min(num, self.num_steps)
        return replace(self, num_steps=num), run_length(num, self.step_s, self.growth_s)


class DecodeLog:
    """Step runs of one worker, in order; those older than every running turn are let go."""

    __slots__ = ("_firsts", "_runs", "num_runs")

    def __init__(self) -> None:
        self.num_runs = 0
        self._runs: list[StepRun] = []
        self._firsts: list[int] = []

    def add(self, run: StepRun) -> None:
        """Note steps that were decoded."""
        self.num_runs += 1
        self._runs.append(run)
        self._firsts.append(run.first_step)

    def forget_before(self, step: int) -> None:
        """No one will ask for steps before `step` any more."""
        keep_from = max(0, bisect_right(self._firsts, step) - 1)
        if 2 * keep_from > len(self._runs):
            del self._runs[:keep_from]
            del self._firsts[:keep_from]

    def gaps(self, joined_at_step: int, token_at_s: float, end_step: int) -> tuple[GapRun, ...]:
        """Token gaps of a turn whose token before step `joined_at_step` came at `token_at_s` and
        whose last token came with the step before `end_step`."""
        found: list[GapRun] = []
        index = bisect_right(self._firsts, joined_at_step) - 1
        step = joined_at_step
        while step < end_step:
            run = self._runs[index]
            skipped = step - run.first_step
            until = min(end_step, run.first_step + run.num_steps)
            first = run.step_s + run.growth_s * skipped
            since = token_at_s if step == joined_at_step else run.previous_end_s
            waited = run.start_s - since if skipped == 0 else 0.0
            if waited > 0:
                found.append(GapRun(first + waited, 0.0, 1))
                first += run.growth_s
                step += 1
            if step < until:
                found.append(GapRun(first, run.growth_s, until - step))
            step = until
            index += 1
        return tuple(found)


def mean_gap_s(runs: Iterable[GapRun]) -> float | None:
    """The mean of token gaps; None when there are none."""
    count, total = 0, 0.0
    for first_s, growth_s, num_gaps in runs:
        count += num_gaps
        total += run_length(num_gaps, first_s, growth_s)
    return total / count if count else None


def gap_percentile_s(runs: Iterable[GapRun], percent: float) -> float:
    """The nearest-rank percentile of token gaps. Spells all gaps out: for a turn, not a trace."""
    gaps = [run.first_s + run.growth_s * i for run in runs for i in range(run.num_gaps)]
    return percentile(sorted(gaps), percent)
