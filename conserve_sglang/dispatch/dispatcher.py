"""The state machine that owns conversations, pins and the KV ledger.

`handle(event, now)` returns the commands that follow. It reads no clock, does no I/O and writes
no log, so the router and a simulator drive the same object. The life of one turn:

    TurnArrived ──> held ──────┐            its conversation's KV is still on its way
        │                      v
        ├────────────────> waiting ──> RejectTurn     no room; served in arrival order
        v                      v
      SendTurn  <──────────────┘
        ├── FirstToken, TurnDone          answered
        ├── TurnFailed ──> SendTurn again, or RejectTurn
        └── TurnAbandoned                 over without a whole answer
"""

from collections.abc import Callable
from typing import Any

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.dispatch import events
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.commands import AbortTurn, Command, RejectTurn
from conserve_sglang.dispatch.conversations import Conversations
from conserve_sglang.dispatch.events import Event, FailureCause
from conserve_sglang.dispatch.placing import local_limits, send_turn, turn_view
from conserve_sglang.dispatch.state import (
    Conversation,
    ConversationView,
    DispatchSettings,
    Turn,
    WorkerLoad,
)
from conserve_sglang.dispatch.waiting import WaitingLine
from conserve_sglang.policy.api import (
    Answer,
    Defer,
    DeferReason,
    PhaseOneCause,
    Placement,
    PlacementPolicy,
    Reject,
    RejectReason,
)

_CAUSES = {
    FailureCause.PREFIX_MISSING: PhaseOneCause.PREFIX_MISSING,
    FailureCause.APPEND_TOO_LARGE: PhaseOneCause.LARGE_APPEND,
    FailureCause.DECODER_FAILED: PhaseOneCause.DECODER_LOST,
}


class Dispatcher:
    """Turns events into commands; the only mutable scheduling state there is."""

    def __init__(self, policy: PlacementPolicy, settings: DispatchSettings) -> None:
        self._policy = policy
        self._settings = settings
        self._bookings = Bookings()
        self._conversations = Conversations()
        self._turns: dict[TurnId, Turn] = {}
        self._line = WaitingLine()
        self._num_arrivals = 0
        self._out: list[Command] = []
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.TurnArrived: self._arrive,
            events.FirstToken: self._first_token,
            events.TurnDone: self._done,
            events.TurnFailed: self._failed,
            events.TurnAbandoned: self._abandoned,
            events.WorkerUp: self._worker_up,
            events.WorkerLost: self._worker_lost,
            events.ConversationEnded: self._end_conversation,
            events.Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened at `now` (seconds, monotonic); return what to do, in order.

        Events about a turn that is over or was never announced are ignored: a late report is
        normal when a turn is aborted. Raises ValueError for a turn id that is already in use.
        """
        self._handlers[type(event)](event, now)
        out, self._out = self._out, []
        return out

    @property
    def next_deadline_at_s(self) -> float | None:
        """When a `Tick` is due; None while nothing waits for time to pass."""
        due = []
        if (deadline := self._line.next_deadline_at_s()) is not None:
            due.append(deadline)
        if (resting := self._conversations.longest_at_rest()) is not None:
            due.append(resting.last_active_at_s + self._settings.conversation_ttl_s)
        if self._line.num_waiting and (idle := self._conversations.longest_idle()) is not None:
            due.append(idle.last_active_at_s + self._settings.reclaim_idle_s)
        return min(due, default=None)

    @property
    def num_queued(self) -> int:
        """Turns that arrived and were not sent yet."""
        return self._line.num_unsent

    @property
    def num_conversations(self) -> int:
        """Live conversations."""
        return len(self._conversations)

    @property
    def num_open_turns(self) -> int:
        """Turns that arrived and are not over."""
        return len(self._turns)

    def holds(self, conversation_id: ConversationId) -> bool:
        """Whether a conversation is live."""
        return self._conversations.get(conversation_id) is not None

    def conversation(self, conversation_id: ConversationId) -> ConversationView | None:
        """A live conversation, or None."""
        conversation = self._conversations.get(conversation_id)
        return None if conversation is None else self._bookings.view(conversation)

    def worker_loads(self) -> tuple[WorkerLoad, ...]:
        """Every worker ever announced, in order of registration."""
        return self._bookings.loads()

    # what happens to turns

    def _arrive(self, event: events.TurnArrived, now: float) -> None:
        if event.turn_id in self._turns:
            raise ValueError(f"turn {event.turn_id} is already open")
        conversation = self._conversations.wake(event.conversation_id, now)
        conversation.num_open_turns += 1
        conversation.num_turns += 1
        turn = Turn(
            event.turn_id,
            conversation,
            self._num_arrivals,
            conversation.num_turns,
            event.input_tokens,
            event.is_exact,
            now + self._settings.queue_timeout_s,
        )
        self._num_arrivals += 1
        self._turns[event.turn_id] = turn
        self._place_or_hold(turn, now)

    def _first_token(self, event: events.FirstToken, now: float) -> None:
        turn = self._sent(event.turn_id)
        if turn is not None and self._bookings.prefilled(turn):
            self._let_held_go(turn.conversation, now)
            self._serve_line(now)

    def _done(self, event: events.TurnDone, now: float) -> None:
        turn = self._sent(event.turn_id)
        if turn is None:
            return
        bookings, conversation = self._bookings, turn.conversation
        bookings.prefilled(turn)
        conversation.prompt_tokens = event.prompt_tokens
        if turn.keeps_kv and bookings.pin_of(conversation) is turn.decoder:
            # A shorter prompt is a side request or a new beginning; what was there stays there.
            held = event.prompt_tokens + event.output_tokens
            bookings.set_resident(conversation, max(held, conversation.resident_tokens))
        self._close_turn(turn, now)
        self._serve_line(now)

    def _failed(self, event: events.TurnFailed, now: float) -> None:
        turn = self._sent(event.turn_id)
        if turn is None:
            return
        bookings, conversation, cause = self._bookings, turn.conversation, event.cause
        bookings.take_back(turn)
        if cause is FailureCause.PREFIX_MISSING:
            bookings.set_resident(conversation, 0)
        elif cause is FailureCause.DECODER_FAILED:
            self._release(conversation)
        conversation.cause = _CAUSES.get(cause, conversation.cause)
        if conversation.is_ended:
            self._reject(turn, RejectReason.CONVERSATION_ENDED, now)
        elif turn.attempts >= self._settings.max_attempts:
            self._reject(turn, RejectReason.RETRIES_SPENT, now)
        else:
            self._place_or_hold(turn, now)
            self._let_held_go(conversation, now)
        self._serve_line(now)

    def _abandoned(self, event: events.TurnAbandoned, now: float) -> None:
        turn = self._turns.get(event.turn_id)
        if turn is not None:
            self._close_turn(turn, now)
            self._serve_line(now)

    def _sent(self, turn_id: TurnId) -> Turn | None:
        """A turn that is at its workers."""
        turn = self._turns.get(turn_id)
        return None if turn is None or turn.decoder is None else turn

    # workers, conversations, time

    def _worker_up(self, event: events.WorkerUp, now: float) -> None:
        self._worker_lost(events.WorkerLost(worker_id=event.spec.worker_id), now)
        self._bookings.ledger.open(event.spec)
        self._serve_line(now)

    def _worker_lost(self, event: events.WorkerLost, now: float) -> None:
        ledger = self._bookings.ledger
        if not ledger.close(event.worker_id):
            return
        state = ledger.state(event.worker_id)
        for turn in self._turns.values():
            if turn.decoder is state or (turn.prefiller is state and turn.backlog_tokens):
                self._out.append(AbortTurn(turn_id=turn.turn_id))

    def _end_conversation(self, event: events.ConversationEnded, now: float) -> None:
        conversation = self._conversations.get(event.conversation_id)
        if conversation is None:
            return
        self._forget(conversation)
        for turn in [t for t in self._turns.values() if t.conversation is conversation]:
            if turn.decoder is None:
                self._reject(turn, RejectReason.CONVERSATION_ENDED, now)
            else:
                self._out.append(AbortTurn(turn_id=turn.turn_id))
        self._serve_line(now)

    def _tick(self, event: events.Tick, now: float) -> None:
        while (overdue := self._line.pop_overdue(now)) is not None:
            self._reject(overdue, RejectReason.QUEUE_TIMEOUT, now)
            self._serve_line(now)
        while (resting := self._conversations.longest_at_rest()) is not None:
            if resting.last_active_at_s + self._settings.conversation_ttl_s > now:
                break
            self._forget(resting)
        self._serve_line(now)

    # placing

    def _place_or_hold(self, turn: Turn, now: float) -> None:
        conversation = turn.conversation
        if conversation.opener is None:
            self._place(turn, now)
        elif self.num_queued >= self._settings.max_queued_turns:
            self._reject(turn, RejectReason.QUEUE_FULL, now)
        else:
            self._line.hold(turn)

    def _place(self, turn: Turn, now: float) -> None:
        answer = self._ask(turn)
        if isinstance(answer, Reject):
            self._reject(turn, answer.reason, now)
        elif isinstance(answer, Placement) and not self._overtakes(turn, answer):
            self._send(turn, answer)
            if turn.conversation.opener is turn:
                self._serve_line(now)  # the first in line may be held now, and block nobody
        elif self.num_queued >= self._settings.max_queued_turns:
            self._reject(turn, RejectReason.QUEUE_FULL, now)
        else:
            self._line.add(turn)
            if isinstance(answer, Defer) and answer.reason is DeferReason.NO_KV_ROOM:
                self._serve_line(now)

    def _overtakes(self, turn: Turn, placement: Placement) -> bool:
        """Whether the turn would take room for which an earlier turn is waiting."""
        if placement.prefiller is None and turn.conversation.decoder is not None:
            return False
        return self._line.has_before(turn.arrival_number)

    def _serve_line(self, now: float) -> None:
        """Place waiting turns in arrival order, until one has to go on waiting."""
        while (turn := self._line.first()) is not None:
            if turn.conversation.opener is not None:
                self._line.take(turn)
                self._place_or_hold(turn, now)
                continue
            answer = self._ask(turn)
            if isinstance(answer, Defer):
                if answer.reason is DeferReason.NO_KV_ROOM and self._reclaim_one(now):
                    continue
                return
            if isinstance(answer, Placement):
                self._line.take(turn)
                self._send(turn, answer)
            else:
                self._reject(turn, answer.reason, now)

    def _reclaim_one(self, now: float) -> bool:
        """Let go of the KV of the longest idle conversation that has any; False if none is due."""
        while (idle := self._conversations.longest_idle()) is not None:
            if idle.last_active_at_s + self._settings.reclaim_idle_s > now:
                return False
            self._conversations.lapse(idle)
            if self._bookings.pin_of(idle) is not None:
                self._release(idle)
                idle.cause = PhaseOneCause.RECLAIMED
                return True
        return False

    def _ask(self, turn: Turn) -> Answer:
        view = turn_view(turn, self._bookings, self._settings)
        return self._policy.place(view, self._bookings.ledger)

    def _send(self, turn: Turn, placement: Placement) -> None:
        limits = local_limits(turn, placement, self._bookings.ledger, self._settings)
        left = self._bookings.book(turn, placement)
        if left is not None:
            self._out.append(left)
        self._out.append(send_turn(turn, placement, limits))

    # endings

    def _close_turn(self, turn: Turn, now: float) -> None:
        """A turn is over: free what it had and let its conversation go on."""
        conversation = turn.conversation
        if turn.decoder is None:
            self._line.leave(turn)
        self._bookings.take_back(turn)
        turn.is_over = True
        del self._turns[turn.turn_id]
        conversation.num_open_turns -= 1
        conversation.last_active_at_s = now
        if conversation.is_ended:
            return
        if conversation.num_open_turns > 0:
            self._let_held_go(conversation, now)
        elif conversation.prompt_tokens or self._bookings.pin_of(conversation) is not None:
            self._conversations.rest(conversation)
        else:
            self._forget(conversation)  # nothing was ever answered: nothing to remember

    def _let_held_go(self, conversation: Conversation, now: float) -> None:
        while conversation.opener is None:
            turn = self._line.pop_held(conversation)
            if turn is None:
                return
            self._place(turn, now)

    def _reject(self, turn: Turn, reason: RejectReason, now: float) -> None:
        self._out.append(RejectTurn(turn_id=turn.turn_id, reason=reason))
        self._close_turn(turn, now)

    def _release(self, conversation: Conversation) -> None:
        """Drop the pin and let the worker let go of the KV."""
        release = self._bookings.unpin(conversation)
        if release is not None:
            self._out.append(release)

    def _forget(self, conversation: Conversation) -> None:
        """End a conversation; its open turns keep their bookings until they are over."""
        self._release(conversation)
        self._conversations.drop(conversation)
