"""Power over a simulation's time, modelled."""

import math
from collections.abc import Mapping, Sequence

from conserve_sglang.sim import Simulation


class PowerLog:
    """Watts of each tier over a simulation's time, in bins of `bin_s` seconds; 0: none is kept.

    A worker books what it did when that is over, so what it booked since the last look is spread
    over as many bins back as it was busy for.
    """

    def __init__(self, simulation: Simulation, bin_s: float) -> None:
        self._simulation, self._bin_s = simulation, bin_s
        self._seen: dict[str, tuple[float, float]] = {}
        self._joules: dict[str, list[float]] = {}
        self._busy_s: dict[str, list[float]] = {}
        if bin_s > 0:
            simulation.kernel.at(bin_s, self._look)

    def _look(self, now: float) -> None:
        number = round(now / self._bin_s) - 1
        for worker in self._simulation.energy(0.0):
            joules, busy_s = self._seen.get(worker.worker_id, (0.0, 0.0))
            more_j, more_s = worker.total_j - joules, worker.busy_s - busy_s
            self._seen[worker.worker_id] = worker.total_j, worker.busy_s
            back = min(number + 1, max(1, math.ceil(more_s / self._bin_s - 1e-9)))
            for log, more in ((self._joules, more_j), (self._busy_s, more_s)):
                bins = log.setdefault(worker.tier, [])
                bins.extend([0.0] * (number + 1 - len(bins)))
                for index in range(number + 1 - back, number + 1):
                    bins[index] += more / back
        self._simulation.kernel.at((number + 2) * self._bin_s, self._look)

    @property
    def watts(self) -> Mapping[str, Sequence[tuple[float, float]]]:
        """By tier: the end of each bin, and the mean power in it, idling included."""
        idle_w: dict[str, float] = {}
        counts: dict[str, int] = {}
        for worker in self._simulation.workers.values():
            tier, power = str(worker.spec.tier), worker.perf.power
            counts[tier] = counts.get(tier, 0) + 1
            idle_w[tier] = idle_w.get(tier, 0.0) + (power.idle_w if power is not None else 0.0)
        found: dict[str, list[tuple[float, float]]] = {}
        for tier, bins in self._joules.items():
            for number, joules in enumerate(bins):
                busy = self._busy_s[tier][number] / self._bin_s / counts[tier]
                watts = joules / self._bin_s + max(0.0, 1 - busy) * idle_w[tier]
                found.setdefault(tier, []).append(((number + 1) * self._bin_s, watts))
        return found
