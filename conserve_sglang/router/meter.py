"""Measures the turns of one process on their way; nothing here is done per token."""

from collections.abc import Callable

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import FailureCause, SendTurn
from conserve_sglang.policy.api import RejectReason
from conserve_sglang.router.listeners import TurnListener
from conserve_sglang.router.ports import FleetView
from conserve_sglang.router.turn import Turn
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

    def arrived(self, turn: Turn) -> None:
        """A turn came in."""
        turn.arrived_at_s = self.clock()

    def sent(self, turn: Turn, command: SendTurn) -> None:
        """An attempt begins."""
        self.metrics.placements[command.reason] += 1
        if command.attempt == 1:
            self._note_beginning(turn, command)
        else:
            self.metrics.num_retries += 1
        for listener in self.listeners:
            listener.sent(turn, command)

    @staticmethod
    def _note_beginning(turn: Turn, command: SendTurn) -> None:
        """Remember when turn 1 arrived, as long as all turns come to this process."""
        conversation, index = turn.conversation, command.turn_index
        if index == 1:
            conversation.began_at_s = turn.arrived_at_s
        elif index != conversation.last_turn_seen + 1:
            conversation.began_at_s = None
        conversation.last_turn_seen = index

    def began(self, turn: Turn) -> None:
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

    def answered(self, turn: Turn, usage: Usage | None) -> None:
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
        conversation = turn.conversation
        if conversation.began_at_s is not None:
            leg = turn.decode_leg
            if leg is not None and not leg.has_called_tools:
                ttfet_s = turn.first_byte_at_s - conversation.began_at_s
                timings.ttfet.observe(ttfet_s)
                if recent is not None:
                    recent.ttfet.append((conversation.began_at_s, now, ttfet_s))
                conversation.began_at_s = None

    def interrupted(self) -> None:
        """A decoder was lost in the middle of an answer, and another may go on with it."""
        self.metrics.num_interruptions += 1

    def went_on(self, turn: Turn) -> None:
        """Another decoder goes on with an answer."""
        self.metrics.num_continuations += 1
        if turn.command is not None:
            turn.timings = self._timings_of(turn.command)
            if turn.command.prefiller is not None:
                self.metrics.num_kv_transfers += 1

    def failed(self, turn: Turn, cause: FailureCause) -> None:
        """An attempt failed."""
        self.metrics.failures[cause] += 1
        if cause is FailureCause.PREFIX_MISSING:
            self.metrics.num_kv_misses += 1
        for listener in self.listeners:
            listener.failed(turn, cause)

    def rejected(self, turn: Turn, reason: RejectReason) -> None:
        """The turn gets no place."""
        self.metrics.rejections[reason] += 1
        self.metrics.tenant(turn.conversation.tenant).rejections += 1

    def closed(self, turn: Turn, outcome: Outcome, usage: Usage | None = None) -> None:
        """The turn is over."""
        self.metrics.turns[outcome] += 1
        self.metrics.tenant(turn.conversation.tenant).turns += 1
        for listener in self.listeners:
            listener.closed(turn, outcome, usage, self.clock() - turn.arrived_at_s)

    def _count(self, turn: Turn, command: SendTurn, usage: Usage) -> None:
        metrics = self.metrics
        tenant = metrics.tenant(turn.conversation.tenant)
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
