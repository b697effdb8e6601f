"""Power over a simulation's time, modelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conserve_sglang.sim import Simulation


class PowerLog:
    """Watts of each tier over a simulation's time, in bins of `bin_s` seconds; 0: none is kept.

    A worker books what it did when that is over. So what it booked since the last look is laid into
    its bins from the last one back, as far as there is time in them that it was not busy in yet.
    """

    def __init__(self, simulation: Simulation, bin_s: float) -> None:
        self._simulation, self._bin_s = simulation, bin_s
        self._logs = {worker_id: _WorkerLog() for worker_id in simulation.workers}
        self._num_bins = 0
        if bin_s > 0:
            simulation.kernel.at(bin_s, self._look)

    def _look(self, now: float) -> None:
        self._num_bins += 1
        for worker in self._simulation.energy(0.0):
            self._logs[worker.worker_id].book(worker.total_j, worker.busy_s, self._bin_s)
        self._simulation.kernel.at((self._num_bins + 1) * self._bin_s, self._look)

    @property
    def watts(self) -> Mapping[str, Sequence[tuple[float, float]]]:
        """By tier: the end of each bin, and the mean power in it, idling included."""
        found: dict[str, list[float]] = {}
        for worker_id, worker in self._simulation.workers.items():
            power, log = worker.perf.power, self._logs[worker_id]
            idle_w = power.idle_w if power is not None else 0.0
            bins = found.setdefault(str(worker.spec.tier), [0.0] * self._num_bins)
            for number in range(self._num_bins):
                idle_s = self._bin_s - log.busy_s[number]
                bins[number] += (log.joules[number] + idle_s * idle_w) / self._bin_s
        return {
            tier: [((number + 1) * self._bin_s, watts) for number, watts in enumerate(bins)]
            for tier, bins in found.items()
            if bins
        }


@dataclass(slots=True)
class _WorkerLog:
    joules: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    seen_j: float = 0.0
    seen_s: float = 0.0

    def book(self, total_j: float, total_s: float, bin_s: float) -> None:
        """A bin is over."""
        self.joules.append(0.0)
        self.busy_s.append(0.0)
        more_j, left_s = total_j - self.seen_j, total_s - self.seen_s
        self.seen_j, self.seen_s = total_j, total_s
        rate_w = more_j / left_s if left_s > 0 else 0.0
        number = len(self.busy_s) - 1
        while left_s > 0 and number >= 0:
            part_s = min(left_s, bin_s - self.busy_s[number])
            self.busy_s[number] += part_s
            self.joules[number] += part_s * rate_w
            left_s -= part_s
            number -= 1
