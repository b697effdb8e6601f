"""Whose KV is let go when a turn waits for room, and when."""

from collections.abc import Callable
from math import inf

from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.bookings import Bookings
from conserve_sglang.dispatch.conversations import Conversations
from conserve_sglang.dispatch.kv_ledger import WorkerState
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Conversation
from conserve_sglang.dispatch.waiting import WaitingLine
from conserve_sglang.policy.retention import CONSTANT, PricedRetention, Retention


class FirstToGo:
    """Chooses among conversations at rest, as the policy's retention says."""

    __slots__ = (
        "_bookings",
        "_conversations",
        "_due_at_s",
        "_line",
        "_patience",
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
        self._patience = (
            retention.patience_s_per_token if isinstance(retention, PricedRetention) else None
        )
        self._due_at_s = inf

    def choose(self, now: float) -> Conversation | None:
        """The longest idle, the one that is most overdue by its history, or the one that has
        outrun its price most; None if none is due."""
        conversations, idle_s = self._conversations, self._settings.reclaim_idle_s
        if self._retention is CONSTANT:
            return conversations.idle_for(idle_s, now)
        if self._patience is not None:
            found, self._due_at_s = conversations.most_impatient(
                self._prices(self._patience), idle_s, now
            )
            return found
        overdue = self._retention.overdue
        return conversations.most_overdue(
            lambda each, rested_s: overdue(each.history, rested_s), idle_s, now
        )

    @property
    def due_at_s(self) -> float:
        """When one is due, if nothing happens before; it may come out too early. Infinite without
        one."""
        if self._patience is not None:
            return self._due_at_s
        return self._conversations.idle_floor_s + self._settings.reclaim_idle_s

    def _prices(self, patience: Callable[[float, int, float], float]) -> dict[WorkerState, float]:
        """Of each worker that was seen to prefill, what a token of KV there is worth in seconds."""
        ledger = self._bookings.ledger
        num_workers = len(ledger.workers(Role.DECODE)) + len(ledger.workers(Role.MIXED))
        num_waiting = self._line.order.num_waiting / max(1, num_workers)
        return {
            state: patience(rate, state.num_running, num_waiting)
            for state in ledger.states()
            if (rate := state.speeds.prefill_s_per_token) is not None
        }
