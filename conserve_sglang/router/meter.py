"""Measures the turns of one process on their way; nothing here is done per token.

Of a turn that its client sends by itself it counts what the client reports.
"""

from collections.abc import Callable

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import FailureCause, SendTurn
from conserve_sglang.policy.api import RejectReason
from conserve_sglang.router.listeners import TurnListener
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.router.ports import FleetView
from conserve_sglang.telemetry.metrics import Outcome, RouterMetrics, Timings
from conserve_sglang.workers.usage import Usage


class Meter:
    """Told of each step of a turn, counts it in `metrics` and passes it on to the listeners."""

    def __init__(
        self,
        metrics: RouterMetrics,
        fleet: FleetView,
        clock: Callable[[], float],
        listeners: tuple[TurnListener, ...],
    ) -> None:
        self.metrics = metrics
        self.listeners = listeners
        self._fleet = fleet
        self.clock = clock
        self._timings: dict[tuple[WorkerId, bool], Timings] = {}

    def arrived(self, turn: MeasuredTurn) -> None:
        """A turn came in."""
        turn.arrived_at_s = self.clock()

    def sent(self, turn: MeasuredTurn, command: SendTurn) -> None:
        """An attempt begins."""
        self.metrics.placements[command.reason] += 1
        turn.num_attempts += 1
        if command.attempt > 1:
            turn.num_retries += 1
            self.metrics.num_retries += 1
        for listener in self.listeners:
            listener.sent(turn, command)

    def began(self, turn: MeasuredTurn) -> None:
        """The first byte is there."""
        now = turn.first_byte_at_s = self.clock()
        command = turn.command
        if command is not None:
            timings = turn.timings = self._timings_of(command)
            timings.ttft.observe(now - turn.arrived_at_s)
            if command.prefiller is not None:
                self.metrics.num_kv_transfers += 1
        for listener in self.listeners:
            listener.began(turn)

    def answered(self, turn: MeasuredTurn, usage: Usage | None) -> None:
        """The last byte is there; `usage` is what the decoder counted."""
        command, timings, now = turn.command, turn.timings, self.clock()
        if command is None or timings is None:
            return
        timings.e2e.observe(now - turn.arrived_at_s)
        recent = self.metrics.recent
        if usage is not None:
            self._count(turn, command, usage)
            if turn.payload.is_stream and usage.output_tokens > 1:
                tbt_s = (now - turn.first_byte_at_s) / (usage.output_tokens - 1)
                timings.tbt.observe(tbt_s)
                if recent is not None:
                    recent.tbt.append((turn.first_byte_at_s, now, tbt_s))

    def answered_several(self, turn: MeasuredTurn, usage: Usage | None) -> None:
        """The same of several choices; their tokens come side by side, and tell no TBT."""
        command, timings = turn.command, turn.timings
        if command is None or timings is None:
            return
        timings.e2e.observe(self.clock() - turn.arrived_at_s)
        if usage is not None:
            self._count(turn, command, usage)

    def began_elsewhere(self, turn: MeasuredTurn) -> None:
        """The first byte of a placed turn is there."""
        command = turn.command
        if command is not None:
            turn.timings = self._timings_of(command)
            if command.prefiller is not None:
                self.metrics.num_kv_transfers += 1
        for listener in self.listeners:
            listener.began(turn)

    def answered_elsewhere(
        self, turn: MeasuredTurn, usage: Usage, first_s: float | None, total_s: float | None
    ) -> None:
        """A placed turn is answered; how long that took is known if its client says so."""
        command, timings = turn.command, turn.timings
        if command is None or timings is None:
            return
        self._count(turn, command, usage)
        if first_s is not None:
            timings.ttft.observe(first_s)
        if total_s is not None:
            timings.e2e.observe(total_s)
        if first_s is None or total_s is None or usage.output_tokens < 2:
            return
        tbt_s = max(0.0, total_s - first_s) / (usage.output_tokens - 1)
        timings.tbt.observe(tbt_s)
        if self.metrics.recent is not None:
            began_at_s = turn.arrived_at_s
            self.metrics.recent.tbt.append((began_at_s + first_s, began_at_s + total_s, tbt_s))

    def spoken(self, command: SendTurn, began_at_s: float, spoke_at_s: float) -> None:
        """A conversation's user has a first answer, `began_at_s` turn 1 arrived."""
        ttfet_s = spoke_at_s - began_at_s
        self._timings_of(command).ttfet.observe(ttfet_s)
        if self.metrics.recent is not None:
            self.metrics.recent.ttfet.append((began_at_s, self.clock(), ttfet_s))

    def interrupted(self, turn: MeasuredTurn) -> None:
        """A decoder was lost in the middle of an answer, and another may go on with it."""
        turn.num_interruptions += 1
        self.metrics.num_interruptions += 1

    def went_on(self, turn: MeasuredTurn) -> None:
        """Another decoder goes on with an answer."""
        self.metrics.num_continuations += 1
        turn.num_continuations += 1
        if turn.command is not None:
            turn.timings = self._timings_of(turn.command)
            if turn.command.prefiller is not None:
                self.metrics.num_kv_transfers += 1

    def failed(self, turn: MeasuredTurn, cause: FailureCause) -> None:
        """An attempt failed."""
        self.metrics.failures[cause] += 1
        if cause is FailureCause.PREFIX_MISSING:
            self.metrics.num_kv_misses += 1
        for listener in self.listeners:
            listener.failed(turn, cause)

    def rejected(self, turn: MeasuredTurn, reason: RejectReason) -> None:
        """The turn gets no place."""
        self.metrics.rejections[reason] += 1
        self.metrics.tenant(turn.tenant).rejections += 1

    def closed(self, turn: MeasuredTurn, outcome: Outcome, usage: Usage | None = None) -> None:
        """The turn is over."""
        self.metrics.turns[outcome] += 1
        self.metrics.tenant(turn.tenant).turns += 1
        for listener in self.listeners:
            listener.closed(turn, outcome, usage, self.clock() - turn.arrived_at_s)

    def _count(self, turn: MeasuredTurn, command: SendTurn, usage: Usage) -> None:
        metrics = self.metrics
        tenant = metrics.tenant(turn.tenant)
        metrics.prompt_tokens += usage.prompt_tokens
        metrics.cached_tokens += usage.cached_tokens
        metrics.output_tokens += usage.output_tokens
        tenant.prompt_tokens += usage.prompt_tokens
        tenant.cached_tokens += usage.cached_tokens
        tenant.output_tokens += usage.output_tokens
        limits = command.limits
        if limits is not None and usage.cached_tokens < limits.min_cached:
            metrics.num_kv_misses += 1
        if command.prefiller is not None:
            moved = max(0, usage.prompt_tokens - command.resident_tokens)
            metrics.kv_transferred_tokens += moved
            size = self._fleet.worker(command.decoder).kv_bytes_per_token
            if size is not None:
                metrics.kv_transferred_bytes += int(moved * size)

    def _timings_of(self, command: SendTurn) -> Timings:
        key = (command.decoder, command.prefiller is not None)
        timings = self._timings.get(key)
        if timings is None:
            plan = self._fleet.worker(command.decoder).plan
            role = "prefill" if command.prefiller is not None else plan.role.value
            timings = self._timings[key] = self.metrics.timings_of(plan.tier, role)
        return timings
