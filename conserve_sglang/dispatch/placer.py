"""Places turns or lets them wait, and frees what they had when they are over.

    place_or_hold ──> held           until its conversation's KV is on its decoder
          │
          └──> _place ──> sent, waiting or rejected;  serve_line() asks again for those who wait

The dispatcher's handlers say what happened; here is what follows for turns and conversations.
Commands gather in `out`, in the order in which they are to be carried out.
"""

from itertools import islice
from math import inf

from conserve_sglang.core.ids import TurnId, WorkerId
from conserve_sglang.dispatch.avoiding import Avoiding, Band
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.commands import Command, RejectTurn
from conserve_sglang.dispatch.conversations import Conversations
from conserve_sglang.dispatch.events import TurnArrived
from conserve_sglang.dispatch.first_to_go import FirstToGo
from conserve_sglang.dispatch.placing import local_limits, send_turn, turn_view
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Conversation, Turn
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
from conserve_sglang.policy.retention import CONSTANT, Retention

MAX_HOLDERS_ASKED = 16
NOBODY = (0, 0)
_OUTSIDE_BAND = frozenset({DeferReason.NO_KV_ROOM, DeferReason.NO_DECODER})


class Placer:
    """The dispatcher's hands: open turns, live conversations, the waiting line, the books."""

    __slots__ = (
        "_first_to_go",
        "_settings",
        "bookings",
        "conversations",
        "late_after_s",
        "line",
        "most_running",
        "out",
        "policy",
        "retention",
        "turns",
        "wants_room",
    )

    def __init__(self, policy: PlacementPolicy, settings: DispatchSettings) -> None:
        self.policy = policy
        self.late_after_s: float = getattr(policy, "late_after_s", inf)
        self.retention: Retention = getattr(policy, "retention", CONSTANT)
        self._settings = settings
        self.bookings = Bookings(settings.max_prefill_backlog_tokens)
        self.conversations = Conversations()
        self.turns: dict[TurnId, Turn] = {}
        self.line = WaitingLine(settings)
        self._first_to_go = FirstToGo(
            self.retention, settings, self.bookings, self.conversations, self.line
        )
        self.out: list[Command] = []
        self.most_running: int | None = None
        self.wants_room = False  # the line was last left for lack of KV room

    # beginnings

    def begin(self, event: TurnArrived, now: float) -> Conversation | None:
        """A turn's conversation is new: begin it, or reject the turn if there are too many."""
        settings, conversations = self._settings, self.conversations
        tenant = conversations.tenant(event.tenant)
        most = settings.max_conversations_per_tenant
        if most is not None and tenant.num_conversations >= most:
            resting = tenant.longest_at_rest()
        elif len(conversations) >= settings.max_conversations:
            resting = conversations.to_make_room(tenant)
        else:
            return conversations.begin(event.conversation_id, tenant, now)
        if resting is not None:
            self.forget(resting)
            self.serve_line(now)
            return conversations.begin(event.conversation_id, tenant, now)
        reason = RejectReason.TOO_MANY_CONVERSATIONS
        self.out.append(RejectTurn(turn_id=event.turn_id, reason=reason))
        return None

    # placing

    def place_or_hold(self, turn: Turn, now: float) -> None:
        """Send a turn or let it wait, for a place or for its conversation; reject it if neither."""
        conversation = turn.conversation
        if conversation.opener is None:
            self._place(turn, now)
        elif self._may_wait(turn, now, to_hold=True):
            self.line.hold(turn, now)

    def let_held_go(self, conversation: Conversation, now: float) -> None:
        """Place the turns held behind a conversation's opener, now that there is none."""
        while conversation.opener is None:
            turn = self.line.pop_held(conversation, now)
            if turn is None:
                return
            self._place(turn, now)

    def serve_line(self, now: float) -> None:
        """Place waiting turns in their order, until the first has to go on waiting.

        A turn that finds no KV room may be passed by other tenants' turns, within bounds, and by
        turns of conversations that hold KV: they bring the end of these nearer, and with that room.
        """
        if not self.line.order.num_waiting:
            self.wants_room = False
            return
        while self._serve_in_order(now) and self._serve_holders(now):
            pass

    def _serve_in_order(self, now: float) -> bool:
        """Place waiting turns; whether the line was left for lack of KV room."""
        order = self.line.order
        self.wants_room = False
        if not order.num_waiting:
            return False
        while (turn := order.first()) is not None:
            if turn.conversation.opener is not None:
                order.take(turn)
                self.place_or_hold(turn, now)
                continue
            if self._is_late(turn, now):
                order.put_last(turn)
                continue
            answer = self.ask(turn)
            if isinstance(answer, Placement):
                self.line.served(turn, now)
                self.send(turn, answer, now)
            elif isinstance(answer, Reject):
                self.reject(turn, answer.reason, now)
            elif not self._goes_on(answer, now):
                break
        order.step_back()
        return self.wants_room

    def _is_late(self, turn: Turn, now: float) -> bool:
        """Whether a turn that begins something has waited too long to be worth others' waiting."""
        if now - turn.arrived_at_s <= self.late_after_s or turn.rank != turn.arrival_number:
            return False
        return self.line.num_waiting > 1 and turn.conversation.decoder is None

    def _serve_holders(self, now: float) -> bool:
        """Place waiting turns whose conversations hold KV, though others wait for room before them;
        whether anything came of it.

        If nothing runs anywhere, no room comes by itself: then the last of several lets go.
        """
        order, changed = self.line.order, False
        for turn in list(islice(order.holders.values(), MAX_HOLDERS_ASKED)):
            if turn.conversation.opener is not None or not turn.is_waiting:
                continue
            answer = self.ask(turn)
            if isinstance(answer, Placement):
                self.line.served(turn, now)
                self.send(turn, answer, now)
                changed = True
            elif isinstance(answer, Reject):
                self.reject(turn, answer.reason, now)
                changed = True
            elif answer.reason is DeferReason.PREFILL_BACKLOG:
                break
        if changed or len(self.turns) > self.line.num_unsent:
            return changed
        return self._let_one_go()

    def _let_one_go(self) -> bool:
        """Let go of the KV of the last waiting turn that has some; False unless two have."""
        holders = self.line.order.holders
        while len(holders) > 1:
            _, turn = holders.popitem()
            if self.bookings.pin_of(turn.conversation) is not None:
                self.release(turn.conversation)
                turn.conversation.cause = PhaseOneCause.RECLAIMED
                return True
        return False

    def _goes_on(self, deferred: Defer, now: float) -> bool:
        """Whether another look at the line may find a place: KV was let go, or others pass."""
        if deferred.reason is not DeferReason.NO_KV_ROOM:
            return False
        if self._reclaim_one(now):
            return True
        self.wants_room = True
        return self.line.order.step_aside(self.bookings.ledger.largest_pool)

    def ask(self, turn: Turn, busy: tuple[WorkerId, ...] = ()) -> Answer:
        """What the policy says of a turn as things stand, if as many may run; `busy` workers are
        left out, and a pin to one of them is not shown."""
        if self.most_running is not None and self._must_wait(turn, self.most_running):
            return Defer(DeferReason.RUNNING_BOUND)
        room = self._settings.reserve_output_tokens
        if self.retention is not CONSTANT:
            room = self.retention.output_room(turn.conversation.history, room)
        view = turn_view(turn, self.bookings, room, busy)
        ledger, order = self.bookings.ledger, self.line.order
        ledger.line = order.besides(turn) if order.num_waiting else NOBODY
        if busy:
            return self.policy.place(view, Avoiding(ledger, busy))
        if turn.avoids:
            for avoided in (turn.avoids + turn.doubts, turn.avoids):
                answer = self.policy.place(view, Avoiding(ledger, avoided))
                if isinstance(answer, Placement):
                    return answer
        elif ledger.has_bands:
            answer = self.policy.place(view, Band(ledger, view.needed_tokens))
            if not isinstance(answer, Defer) or answer.reason not in _OUTSIDE_BAND:
                return answer
        return self.policy.place(view, ledger)

    def _must_wait(self, turn: Turn, most: int) -> bool:
        """Whether `most` turns run, and this one has no KV on a decoder."""
        itself = 0 if turn.is_waiting else 1
        if len(self.turns) - self.line.num_unsent - itself < most:
            return False
        return self.bookings.pin_of(turn.conversation) is None

    def _place(self, turn: Turn, now: float) -> None:
        answer = self.ask(turn)
        if isinstance(answer, Reject):
            self.reject(turn, answer.reason, now)
        elif isinstance(answer, Placement) and self.may_go(turn, answer):
            self.send(turn, answer, now)
            if turn.conversation.opener is turn:
                self.serve_line(now)  # the first in line may be held now, and block nobody
        elif self._may_wait(turn, now, to_hold=False):
            self.line.add(turn, now)
            self.serve_line(now)

    def may_go(self, turn: Turn, placement: Placement) -> bool:
        """Whether the turn takes nothing that a turn before it in line is waiting for."""
        if not self.line.order.num_waiting:
            return True
        pin = turn.conversation.decoder
        there = None if pin is None else pin.spec.worker_id
        if placement.prefiller is None and there == placement.decoder:
            return True
        if self.line.order.goes_before(turn):
            return False
        self.line.passed(turn)
        return True

    def _may_wait(self, turn: Turn, now: float, *, to_hold: bool) -> bool:
        """Whether there is room in a queue; if there is none, somebody in it is rejected.

        A turn that was sent before has been let in: it only comes back.
        """
        if turn.attempts or turn.num_continuations:
            return True
        tenants = self.conversations.tenants()
        rejected = self.line.room_for(turn, tenants, to_hold=to_hold)
        if rejected is None:
            return True
        retry_after_s = self.line.retry_after_s(rejected, tenants, now, to_hold=to_hold)
        self.reject(rejected, RejectReason.QUEUE_FULL, now, retry_after_s)
        return rejected is not turn

    @property
    def room_at_s(self) -> float:
        """When KV may be let go for a turn that waits for room; infinite while none waits."""
        return self._first_to_go.due_at_s if self.wants_room else inf

    def _reclaim_one(self, now: float) -> bool:
        """Let go of the KV of one idle conversation that has any, the longest idle or by what is
        expected of it; False if none is due."""
        while (idle := self._first_to_go.choose(now)) is not None:
            self.conversations.lapse(idle)
            if self.bookings.pin_of(idle) is not None:
                self.release(idle)
                idle.cause = PhaseOneCause.RECLAIMED
                return True
        return False

    def keep_headroom(self, conversation: Conversation) -> None:
        """Keep room for the next turn of a conversation that comes to rest."""
        usual = self._settings.reserve_output_tokens
        room = self.retention.headroom(conversation.history, usual)
        self.bookings.set_headroom(conversation, room)

    def send(self, turn: Turn, placement: Placement, now: float) -> None:
        """Book a placed turn and have it sent."""
        limits = local_limits(turn, placement, self.bookings.ledger, self._settings)
        left = self.bookings.book(turn, placement, now)
        if left is not None:
            self.out.append(left)
        self.out.append(send_turn(turn, placement, limits))

    # endings

    def reject(
        self, turn: Turn, reason: RejectReason, now: float, retry_after_s: float | None = None
    ) -> None:
        """Answer a turn with an error; it is over."""
        rejected = RejectTurn(turn_id=turn.turn_id, reason=reason, retry_after_s=retry_after_s)
        self.out.append(rejected)
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
            if self.retention is not CONSTANT:
                self.keep_headroom(conversation)
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
