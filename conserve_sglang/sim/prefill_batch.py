"""The prompts a worker prefills together."""

import math

from conserve_sglang.sim.perf_model import PerfModel, PowerModel
from conserve_sglang.sim.turn_run import TurnRun


class PrefillBatch:
    """Parts of prompts for one step, each with how far it goes; and the joules of all steps so far,
    of whole prompts (`prefill_j`) and of appends (`append_j`).

    Each prompt has its own watts for its share of a step, which is its cost by itself.
    """

    __slots__ = ("_costs_s", "append_j", "parts", "prefill_j")

    def __init__(self) -> None:
        self.parts: list[tuple[TurnRun, int]] = []
        self._costs_s: list[float] = []
        self.prefill_j = 0.0
        self.append_j = 0.0

    def begin(self, perf: PerfModel) -> float:
        """The seconds of a step over the parts."""
        self._costs_s = [run.chunk_cost(perf, until) for run, until in self.parts]
        return perf.prefill_batch(self._costs_s)

    def take_out(self, power: PowerModel | None, seconds: float) -> list[tuple[TurnRun, int]]:
        """The step is over after `seconds`, or its worker lost: book it and let the prompts go."""
        if power is not None:
            self._book(power, seconds)
        parts, self.parts = self.parts, []
        return parts

    def _book(self, power: PowerModel, seconds: float) -> None:
        for run, joules in self._joules(power, seconds):
            run.book_prefill(joules)
            if run.prefill_from:
                self.append_j += joules
            else:
                self.prefill_j += joules

    def joules_of(self, power: PowerModel, seconds: float) -> float:
        """Joules of the step, or of a part of it."""
        return sum(joules for _, joules in self._joules(power, seconds))

    def _joules(self, power: PowerModel, seconds: float) -> list[tuple[TurnRun, float]]:
        """Of each part of the step."""
        if len(self.parts) == 1:  # the usual
            run = self.parts[0][0]
            return [(run, _part_j(run, seconds if self._costs_s[0] > 0 else 0.0, power))]
        whole_cost_s = sum(self._costs_s) or math.inf
        return [
            (run, _part_j(run, cost_s / whole_cost_s * seconds, power))
            for (run, _), cost_s in zip(self.parts, self._costs_s, strict=True)
        ]


def _part_j(run: TurnRun, share_s: float, power: PowerModel) -> float:
    if share_s <= 0:
        return 0.0
    whole_s, whole_j = run.prefill_cost
    joules, most_j = share_s * whole_j / whole_s, power.most_w * share_s
    return joules if joules < most_j else most_j
