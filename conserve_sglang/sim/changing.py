"""A worker whose unit costs change while it works, as another power cap changes them."""

from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.turn_run import TurnRun
from conserve_sglang.sim.worker import SimWorker


class ChangingWorker(SimWorker):
    """Tells its joules at any time, and goes on with other unit costs when told to."""

    _has_changed = False  # since a prompt was last gone on with

    def _put_open(self, run: TurnRun, budget: int) -> int:
        if self._has_changed:
            self._has_changed = False
            run.prefill_after_change(self.perf)
        return super()._put_open(run, budget)

    def change(self, perf: PerfModel, now: float) -> None:
        """Go on with other unit costs: what is in progress ends as it began, a decode run at its
        next step's end."""
        self.perf = perf
        self._has_changed = True
        if self._wake_at_s is not None and not self._prefill.parts:
            self._look_up(now)

    @property
    def is_busy(self) -> bool:
        """Whether it is at work on something."""
        return self._wake_at_s is not None

    def joules_by(self, now: float) -> float:
        """What it has used since second 0, with idling, and with its part of what is in progress;
        0 without a power model."""
        power = self.perf.power
        if power is None:
            return 0.0
        prefill = self._prefill
        busy_s, joules = self.busy_s, prefill.prefill_j + prefill.append_j + self._batch.decode_j
        if self._wake_at_s is not None:
            whole_s = self._wake_at_s - self._action_start_s
            elapsed_s = min(now - self._action_start_s, whole_s)
            busy_s += elapsed_s
            joules += elapsed_s / whole_s * self._action_j(whole_s) if whole_s > 0 else 0.0
        return joules + power.idle_w * max(0.0, now - busy_s)

    def _action_j(self, seconds: float) -> float:
        """Joules of the whole action in progress."""
        power = self._power
        if power is None:
            return 0.0
        if not self._prefill.parts:
            return self._batch.joules_of(power, self._steps)
        return self._prefill.joules_of(power, seconds)
