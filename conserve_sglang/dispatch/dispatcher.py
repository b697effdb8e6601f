"""The state machine that owns conversations, pins and the KV ledger.

`handle(event, now)` returns the commands that follow. It reads no clock, does no I/O and writes
no log, so the router and a simulator drive the same object. The life of one turn:

    TurnArrived ──> held ──────┐            its conversation's KV is still on its way
        │                      v
        ├────────────────> waiting ──> RejectTurn     no room; served in fair order
        v                      v
      SendTurn  <──────────────┘
        ├── FirstToken, TurnDone          answered; before them KvMoved, of several choices
        ├── TurnFailed ──> SendTurn again, or RejectTurn
        ├── TurnInterrupted ──> the same, as a phase 1 with what the client has of the answer
        └── TurnAbandoned                 over without a whole answer
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import blame, events, lacking, late, restoring, retrying
from conserve_sglang.dispatch.commands import AbortTurn, Command
from conserve_sglang.dispatch.events import Event
from conserve_sglang.dispatch.histories import note_answer, note_gap
from conserve_sglang.dispatch.placer import Placer
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import ConversationView, Turn, WorkerLoad
from conserve_sglang.policy.api import PhaseOneCause, PlacementPolicy, RejectReason


class Dispatcher:
    """Turns events into commands; the only mutable scheduling state there is."""

    def __init__(self, policy: PlacementPolicy, settings: DispatchSettings) -> None:
        self._settings = settings
        self._placer = placer = Placer(policy, settings)
        # The placer's own, named here because every event needs them.
        self._bookings = placer.bookings
        self._conversations = placer.conversations
        self._turns = placer.turns
        self._line = placer.line
        self._num_arrivals = 0
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.TurnArrived: self._arrive,
            events.FirstToken: self._first_token,
            events.KvMoved: self._kv_moved,
            events.TurnDone: self._done,
            events.TurnFailed: partial(retrying.failed, placer, settings),
            events.TurnInterrupted: partial(retrying.interrupted, placer, settings),
            events.TurnAbandoned: self._abandoned,
            events.WorkerUp: self._worker_up,
            events.WorkerLost: self._worker_lost,
            events.WorkerDraining: self._worker_draining,
            events.WorkerAdmitted: self._worker_admitted,
            events.WorkerRemoved: self._worker_removed,
            events.ConversationEnded: self._end_conversation,
            events.ConversationRestored: partial(restoring.restore, placer),
            events.ConversationTaken: partial(restoring.give_up, placer),
            events.PeersReported: partial(restoring.count_peers, placer),
            events.TenantsWeighed: self._weigh,
            events.RunningBounded: self._bound_running,
            events.Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened at `now` (seconds, monotonic); return what to do, in order.

        Events about a turn that is over or was never announced are ignored: a late report is
        normal when a turn is aborted. Raises ValueError for a turn id that is already in use.
        """
        self._handlers[type(event)](event, now)
        placer = self._placer
        out, placer.out = placer.out, []
        return out

    @property
    def next_deadline_at_s(self) -> float | None:
        """When a `Tick` is due; None while nothing waits for time to pass. It may come out too
        early, never too late; the `Tick` then puts it right."""
        due = []
        if (deadline := self._line.next_deadline_at_s()) is not None:
            due.append(deadline)
        if (rested_at_s := self._line.next_rested_at_s()) is not None:
            due.append(rested_at_s)
        conversations, settings = self._conversations, self._settings
        if conversations.rest_floor_s < inf:
            due.append(conversations.rest_floor_s + settings.conversation_ttl_s)
        if (room_at_s := self._placer.room_at_s) < inf:
            due.append(room_at_s)
        return min(due, default=None)

    @property
    def num_queued(self) -> int:
        """Turns that arrived and were not sent yet."""
        return self._line.num_unsent

    @property
    def queue_depths(self) -> dict[str, int]:
        """The same by queue: for a phase 1, tail turns behind their own conversation, and turns
        that pause between two attempts."""
        line = self._line
        return {"phase_one": line.num_waiting, "tail": line.num_held, "retry": line.num_pausing}

    @property
    def num_conversations(self) -> int:
        """Live conversations."""
        return len(self._conversations)

    @property
    def num_open_turns(self) -> int:
        """Turns that arrived and are not over."""
        return len(self._turns)

    def lack(self, *, is_new: bool) -> RejectReason | None:
        """What a turn would wait for in vain as things stand, of a conversation that begins or of
        one whose KV is on its decoder: NO_DECODER, NO_PREFILLER, or None if it lacks no worker."""
        ask = lacking.by_new if is_new else lacking.by_pinned
        return ask(self._placer.policy, self._bookings.ledger)

    def holds(self, conversation_id: ConversationId) -> bool:
        """Whether a conversation is live."""
        return self._conversations.get(conversation_id) is not None

    def conversation(self, conversation_id: ConversationId) -> ConversationView | None:
        """A live conversation, or None."""
        conversation = self._conversations.get(conversation_id)
        return None if conversation is None else self._bookings.view(conversation)

    def worker_loads(self) -> tuple[WorkerLoad, ...]:
        """Every worker announced and not removed, in order of registration."""
        return self._bookings.loads()

    def num_running(self, worker_id: WorkerId) -> int:
        """How many turns a worker has to do with now."""
        return self.running_turns()[worker_id]

    def num_answered(self, worker_id: WorkerId) -> int:
        """How many turns a worker has answered or prefilled so far; 0 for one not announced."""
        state = self._bookings.ledger.known(worker_id)
        return 0 if state is None else state.num_answered

    def running_turns(self) -> Counter[WorkerId]:
        """How many turns each worker has to do with now; looks at every open turn."""
        running: Counter[WorkerId] = Counter()
        for turn in self._turns.values():
            if turn.decoder is not None:
                running[turn.decoder.spec.worker_id] += 1
            if turn.prefiller is not None and turn.backlog_tokens:
                running[turn.prefiller.spec.worker_id] += 1
        return running

    def worker_load(self, worker_id: WorkerId) -> WorkerLoad | None:
        """A worker's account; None if it was never announced."""
        return next((load for load in self.worker_loads() if load.worker_id == worker_id), None)

    # what happens to turns

    def _arrive(self, event: events.TurnArrived, now: float) -> None:
        if event.turn_id in self._turns:
            raise ValueError(f"turn {event.turn_id} is already open")
        conversation = self._conversations.wake(event.conversation_id)
        if conversation is None:
            conversation = self._placer.begin(event, now)
            if conversation is None:
                return
        headroom_tokens = conversation.headroom_tokens
        if conversation.history is not None:
            note_gap(conversation.history, conversation, now)
            self._bookings.set_headroom(conversation, 0)
        conversation.num_open_turns += 1
        conversation.num_turns += 1
        wait_s, deadline_s = self._settings.queue_timeout_s, event.deadline_s
        if deadline_s is not None and deadline_s < wait_s:
            wait_s = deadline_s
        turn = Turn(
            event.turn_id,
            conversation,
            self._num_arrivals,
            conversation.num_turns,
            event.input_tokens,
            event.is_exact,
            now + wait_s,
            self._num_arrivals,
            now,
        )
        self._num_arrivals += 1
        self._turns[event.turn_id] = turn
        self._placer.place_or_hold(turn, now)
        if headroom_tokens:
            self._placer.serve_line(now)  # what the turn did not take of the room kept for it

    def _kv_moved(self, event: events.KvMoved, now: float) -> None:
        self._first_token(event, now)
        turn = self._sent(event.turn_id)
        if turn is not None:
            turn.first_token_at_s = inf  # still to come

    def _first_token(self, event: events.FirstToken | events.KvMoved, now: float) -> None:
        turn = self._sent(event.turn_id)
        if turn is None:
            return
        if turn.suspects:
            self._placer.out += blame.answered(turn)
        if turn.is_moving:
            retrying.moved(self._placer, turn)
        if self._bookings.prefilled(turn, now):
            self._placer.let_held_go(turn.conversation, now)
        if self._line.order.num_waiting:
            self._placer.serve_line(now)

    def _done(self, event: events.TurnDone, now: float) -> None:
        turn = self._sent(event.turn_id)
        if turn is None:
            return
        bookings, conversation = self._bookings, turn.conversation
        prompt_tokens, output_tokens = event.prompt_tokens, event.output_tokens
        if turn.suspects:
            self._placer.out += blame.answered(turn)
        if turn.is_moving:
            retrying.moved(self._placer, turn)
        if turn.pending_tokens:  # its first token was not told
            bookings.prefilled(turn, now)
        bookings.count_answer(turn, output_tokens, now)
        note_answer(conversation, prompt_tokens, output_tokens)
        conversation.prompt_tokens = prompt_tokens
        if turn.keeps_kv and bookings.pin_of(conversation) is turn.decoder:
            # A shorter prompt is a side request or a new beginning; what was there stays there.
            held = prompt_tokens + output_tokens
            if held > conversation.resident_tokens:
                bookings.set_resident(conversation, held)
        self._placer.close_turn(turn, now)
        self._placer.serve_line(now)

    def _abandoned(self, event: events.TurnAbandoned, now: float) -> None:
        turn = self._turns.get(event.turn_id)
        if turn is not None:
            self._placer.close_turn(turn, now)
            self._placer.serve_line(now)

    def _sent(self, turn_id: TurnId) -> Turn | None:
        """A turn that is at its workers."""
        turn = self._turns.get(turn_id)
        return None if turn is None or turn.decoder is None else turn

    # workers, conversations, time

    def _worker_up(self, event: events.WorkerUp, now: float) -> None:
        self._close_worker(event.spec.worker_id)
        self._bookings.ledger.open(event.spec)
        self._placer.serve_line(now)

    def _worker_lost(self, event: events.WorkerLost, now: float) -> None:
        if self._close_worker(event.worker_id, event.cause):
            self._placer.serve_line(now)  # who waited for it alone may go elsewhere

    def _close_worker(
        self, worker_id: WorkerId, cause: PhaseOneCause = PhaseOneCause.DECODER_LOST
    ) -> bool:
        ledger = self._bookings.ledger
        if not ledger.close(worker_id, cause):
            return False
        state = ledger.state(worker_id)
        for turn in self._turns.values():
            if turn.decoder is state or (turn.prefiller is state and turn.backlog_tokens):
                self._placer.out.append(AbortTurn(turn_id=turn.turn_id))
        return True

    def _worker_draining(self, event: events.WorkerDraining, now: float) -> None:
        self._bookings.ledger.limit(event.worker_id, 0, event.cause)

    def _worker_admitted(self, event: events.WorkerAdmitted, now: float) -> None:
        self._bookings.ledger.limit(event.worker_id, event.num_turns, PhaseOneCause.DECODER_LOST)
        self._placer.serve_line(now)

    def _worker_removed(self, event: events.WorkerRemoved, now: float) -> None:
        self._close_worker(event.worker_id, PhaseOneCause.WORKER_REMOVED)
        self._bookings.ledger.remove(event.worker_id)
        self._placer.serve_line(now)

    def _end_conversation(self, event: events.ConversationEnded, now: float) -> None:
        conversation = self._conversations.get(event.conversation_id)
        if conversation is None:
            return
        self._placer.forget(conversation)
        if conversation.num_open_turns:
            for turn in [t for t in self._turns.values() if t.conversation is conversation]:
                if turn.decoder is None:
                    self._placer.reject(turn, RejectReason.CONVERSATION_ENDED, now)
                else:
                    self._placer.out.append(AbortTurn(turn_id=turn.turn_id))
        self._placer.serve_line(now)

    def _weigh(self, event: events.TenantsWeighed, now: float) -> None:
        self._conversations.weigh(event.weights)
        self._placer.serve_line(now)

    def _bound_running(self, event: events.RunningBounded, now: float) -> None:
        self._placer.most_running = event.num_turns
        self._placer.serve_line(now)

    def _tick(self, event: events.Tick, now: float) -> None:
        while (overdue := self._line.pop_overdue(now)) is not None:
            late.reject(self._placer, overdue, now)
            self._placer.serve_line(now)
        while (rested := self._line.pop_rested(now)) is not None:
            self._placer.place_or_hold(rested, now)
        while (resting := self._conversations.longest_at_rest()) is not None:
            if resting.last_active_at_s + self._settings.conversation_ttl_s > now:
                break
            self._placer.forget(resting)
        self._placer.serve_line(now)
