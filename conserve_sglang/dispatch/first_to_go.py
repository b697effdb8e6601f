"""Whose KV is let go when a turn waits for room, and when."""

from collections.abc import Callable
from math import inf

from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.conversations import Conversations
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Conversation
from conserve_sglang.dispatch.waiting import WaitingLine
from conserve_sglang.policy.retention import CONSTANT, Idle, Retention


class FirstToGo:
    """Chooses among conversations at rest, as the policy's retention says."""

    __slots__ = (
        "_bookings",
        "_conversations",
        "_due_at_s",
        "_line",
        "_patience_s",
        "_retention",
        "_settings",
    )

    def __init__(
        self,
        retention: Retention,
        settings: DispatchSettings,
        bookings: Bookings,
        conversations: Conversations,
        line: WaitingLine,
    ) -> None:
        self._retention, self._settings = retention, settings
        self._bookings, self._conversations, self._line = bookings, conversations, line
        # of a retention that has prices
        self._patience_s: Callable[[Idle], float] | None = getattr(retention, "patience_s", None)
        self._due_at_s = inf

    def choose(self, now: float) -> Conversation | None:
        """The longest idle, the one that is most overdue by its history, or the one that has
        outrun its price most; None if none is due."""
        conversations, idle_s = self._conversations, self._settings.reclaim_idle_s
        if self._retention is CONSTANT:
            return conversations.idle_for(idle_s, now)
        if self._patience_s is not None:
            found, self._due_at_s = conversations.most_impatient(self._patience_of, now)
            return found
        overdue = self._retention.overdue
        return conversations.most_overdue(
            lambda each, rested_s: overdue(each.history, rested_s), idle_s, now
        )

    @property
    def due_at_s(self) -> float:
        """When one is due, if nothing happens before; it may come out too early. Infinite without
        one."""
        if self._patience_s is not None:
            return self._due_at_s
        return self._conversations.idle_floor_s + self._settings.reclaim_idle_s

    def _patience_of(self, conversation: Conversation) -> float:
        pin = self._bookings.pin_of(conversation)
        if pin is None or self._patience_s is None:
            return 0.0
        rate = pin.speeds.prefill_s_per_token
        if rate is None:
            return self._settings.reclaim_idle_s
        ledger = self._bookings.ledger
        num_workers = len(ledger.workers(Role.DECODE)) + len(ledger.workers(Role.MIXED))
        num_waiting = self._line.order.num_waiting / max(1, num_workers)
        return self._patience_s(
            Idle(conversation.resident_tokens, rate, pin.num_running, num_waiting)
        )
