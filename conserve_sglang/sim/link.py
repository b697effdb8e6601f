"""What is on its way: KV between workers, and turns to them."""

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.sim.kernel import Kernel
from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.turn_run import TurnRun
from conserve_sglang.sim.worker import SimWorker


class Links:
    """Every worker sends at most one KV transfer at a time, and receives at most one, at the full
    rate; later ones wait. The fixed latency of a transfer keeps no link busy."""

    __slots__ = ("_receives_until", "_sends_until", "num_transfers")

    def __init__(self) -> None:
        self._sends_until: dict[WorkerId, float] = {}
        self._receives_until: dict[WorkerId, float] = {}
        self.num_transfers = 0

    def transfer(
        self, perf: PerfModel, source: WorkerId, target: WorkerId, tokens: int, now: float
    ) -> float:
        """Begin moving `tokens`; the time at which they have arrived."""
        start = max(now, self._sends_until.get(source, 0.0), self._receives_until.get(target, 0.0))
        self.num_transfers += 1
        end = start + perf.transfer_occupancy(tokens)
        self._sends_until[source] = self._receives_until[target] = end
        return end + perf.transfer_latency(tokens)


def bring_in(
    run: TurnRun, worker: SimWorker, kernel: Kernel, now: float, wait_s: float = 0.0
) -> None:
    """A turn reaches the worker that prefills it after all that it takes beside its steps, the
    answer's way back among it: what was measured is the sum. `wait_s`: for its pair to meet."""
    takes_s = worker.perf.request_s(run.input_tokens) + wait_s
    if takes_s == 0:
        worker.prefill(run, now)
        return

    def arrived(now: float) -> None:
        if run.heir is None:  # else a worker of this attempt is lost
            worker.prefill(run, now)

    kernel.at(now + takes_s, arrived)


def moved_twice_s(tokens: int) -> float:
    """What keeping account of KV costs a turn for which it moves there and back, beside the moves
    (arXiv 2606.01839's published driver: twice 2 ms and 5 us a block of 16 tokens)."""
    return 2 * (2e-3 + 5e-6 * (tokens / 16))
