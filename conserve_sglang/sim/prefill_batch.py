"""The prompts a worker prefills together."""

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
        for (run, _), joules in zip(self.parts, self._joules(power, seconds), strict=True):
            run.book_prefill(joules)
            if run.prefill_from:
                self.append_j += joules
            else:
                self.prefill_j += joules

    def joules_of(self, power: PowerModel, seconds: float) -> float:
        """Joules of the step, or of a part of it."""
        return sum(self._joules(power, seconds))

    def _joules(self, power: PowerModel, seconds: float) -> list[float]:
        """Of each part of the step."""
        costs_s = self._costs_s
        whole_cost_s = costs_s[0] if len(costs_s) == 1 else sum(costs_s)
        if whole_cost_s <= 0:
            return [0.0] * len(costs_s)
        found = []
        for (run, _), cost_s in zip(self.parts, costs_s, strict=True):
            whole_s, whole_j = run.prefill_cost
            share_s = cost_s / whole_cost_s * seconds
            joules = (
                min(share_s * whole_j / whole_s, power.most_w * share_s) if share_s > 0 else 0.0
            )
            found.append(joules)
        return found
