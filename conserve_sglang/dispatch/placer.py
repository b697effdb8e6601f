"""Places turns or lets them wait, and frees what they had when they are over.

    place_or_hold ──> held           until its conversation's KV is on its decoder
          │
          └──> _place ──> sent, waiting or rejected;  serve_line() asks again for those who wait

The dispatcher's handlers say what happened; here is what follows for turns and conversations.
Commands gather in `out`, in the order in which they are to be carried out.
"""

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch.avoiding import Avoiding
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.commands import Command, RejectTurn
from conserve_sglang.dispatch.conversations import Conversations
from conserve_sglang.dispatch.placing import local_limits, send_turn, turn_view
from conserve_sglang.dispatch.state import Conversation, DispatchSettings, Turn
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


class Placer:
    """The dispatcher's hands: open turns, live conversations, the waiting line, the books."""

    __slots__ = ("_policy", "_settings", "bookings", "conversations", "line", "out", "turns")

    def __init__(self, policy: PlacementPolicy, settings: DispatchSettings) -> None:
        self._policy = policy
        self._settings = settings
        self.bookings = Bookings()
        self.conversations = Conversations()
        self.turns: dict[TurnId, Turn] = {}
        self.line = WaitingLine()
        self.out: list[Command] = []

    # placing

    def place_or_hold(self, turn: Turn, now: float) -> None:
        """Send a turn or let it wait, for a place or for its conversation; reject it if neither."""
        conversation = turn.conversation
        if conversation.opener is None:
            self._place(turn, now)
        elif self.line.num_unsent >= self._settings.max_queued_turns:
            self.reject(turn, RejectReason.QUEUE_FULL, now)
        else:
            self.line.hold(turn)

    def let_held_go(self, conversation: Conversation, now: float) -> None:
        """Place the turns held behind a conversation's opener, now that there is none."""
        while conversation.opener is None:
            turn = self.line.pop_held(conversation)
            if turn is None:
                return
            self._place(turn, now)

    def serve_line(self, now: float) -> None:
        """Place waiting turns in arrival order, until one has to go on waiting."""
        while (turn := self.line.first()) is not None:
            if turn.conversation.opener is not None:
                self.line.take(turn)
                self.place_or_hold(turn, now)
                continue
            answer = self.ask(turn)
            if isinstance(answer, Defer):
                if answer.reason is DeferReason.NO_KV_ROOM and self._reclaim_one(now):
                    continue
                return
            if isinstance(answer, Placement):
                self.line.take(turn)
                self._send(turn, answer)
            else:
                self.reject(turn, answer.reason, now)

    def ask(self, turn: Turn) -> Answer:
        """What the policy says of a turn as things stand."""
        view = turn_view(turn, self.bookings, self._settings)
        if turn.avoids:
            answer = self._policy.place(view, Avoiding(self.bookings.ledger, turn.avoids))
            if isinstance(answer, Placement):
                return answer
        return self._policy.place(view, self.bookings.ledger)

    def _place(self, turn: Turn, now: float) -> None:
        answer = self.ask(turn)
        if isinstance(answer, Reject):
            self.reject(turn, answer.reason, now)
        elif isinstance(answer, Placement) and not self._overtakes(turn, answer):
            self._send(turn, answer)
            if turn.conversation.opener is turn:
                self.serve_line(now)  # the first in line may be held now, and block nobody
        elif self.line.num_unsent >= self._settings.max_queued_turns:
            self.reject(turn, RejectReason.QUEUE_FULL, now)
        else:
            self.line.add(turn)
            if isinstance(answer, Defer) and answer.reason is DeferReason.NO_KV_ROOM:
                self.serve_line(now)

    def _overtakes(self, turn: Turn, placement: Placement) -> bool:
        """Whether the turn would take room for which an earlier turn is waiting."""
        pin = turn.conversation.decoder
        if placement.prefiller is None and pin is not None:
            return pin.spec.worker_id != placement.decoder and self.line.has_before(
                turn.arrival_number
            )
        return self.line.has_before(turn.arrival_number)

    def _reclaim_one(self, now: float) -> bool:
        """Let go of the KV of the longest idle conversation that has any; False if none is due."""
        while (idle := self.conversations.longest_idle()) is not None:
            if idle.last_active_at_s + self._settings.reclaim_idle_s > now:
                return False
            self.conversations.lapse(idle)
            if self.bookings.pin_of(idle) is not None:
                self.release(idle)
                idle.cause = PhaseOneCause.RECLAIMED
                return True
        return False

    def _send(self, turn: Turn, placement: Placement) -> None:
        limits = local_limits(turn, placement, self.bookings.ledger, self._settings)
        left = self.bookings.book(turn, placement)
        if left is not None:
            self.out.append(left)
        self.out.append(send_turn(turn, placement, limits))

    # endings

    def reject(self, turn: Turn, reason: RejectReason, now: float) -> None:
        """Answer a turn with an error; it is over."""
        self.out.append(RejectTurn(turn_id=turn.turn_id, reason=reason))
        self.close_turn(turn, now)

    def close_turn(self, turn: Turn, now: float) -> None:
        """A turn is over: free what it had and let its conversation go on."""
        conversation = turn.conversation
        if turn.decoder is None:
            self.line.leave(turn)
        self.bookings.take_back(turn)
        turn.is_over = True
        del self.turns[turn.turn_id]
        conversation.num_open_turns -= 1
        conversation.last_active_at_s = now
        if conversation.is_ended:
            return
        if conversation.num_open_turns > 0:
            self.let_held_go(conversation, now)
        elif conversation.prompt_tokens or self.bookings.pin_of(conversation) is not None:
            self.conversations.rest(conversation)
        else:
            self.forget(conversation)  # nothing was ever answered: nothing to remember

    def release(self, conversation: Conversation) -> None:
        """Drop the pin and let the worker let go of the KV."""
        release = self.bookings.unpin(conversation)
        if release is not None:
            self.out.append(release)

    def forget(self, conversation: Conversation) -> None:
        """End a conversation; its open turns keep their bookings until they are over."""
        self.release(conversation)
        self.conversations.drop(conversation)
