"""Turns not yet sent, in two bounded queues: those that wait for a place (a phase 1 on its way to
a prefiller and a decoder), in fair order, and tail turns held behind their own conversation.

Beside them turns whose last attempts failed, and that pause before the next."""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from conserve_sglang.core.ids import TurnId
from conserve_sglang.dispatch.fair_order import FairOrder, last_waiting
from conserve_sglang.dispatch.service_rate import ServiceRate
from conserve_sglang.dispatch.settings import DispatchSettings
from conserve_sglang.dispatch.state import Conversation, TenantAccount, Turn


class WaitingLine:
    """The heap of deadlines holds stale entries of turns that left; `num_held` does not."""

    __slots__ = (
        "_by_deadline",
        "_holding",
        "_pausing",
        "_settings",
        "_waiting",
        "num_held",
        "order",
    )

    def __init__(self, settings: DispatchSettings) -> None:
        self._settings = settings
        self.order = FairOrder(is_fair=settings.is_fair)
        self._by_deadline: list[tuple[float, int, Turn]] = []
        self._waiting = ServiceRate()
        self._holding = ServiceRate()
        self.num_held = 0
        self._pausing: dict[TurnId, tuple[float, Turn]] = {}  # in the order in which pauses end

    @property
    def num_waiting(self) -> int:
        """Turns waiting for a place."""
        return self.order.num_waiting

    @property
    def num_pausing(self) -> int:
        """Turns that pause between two attempts."""
        return len(self._pausing)

    @property
    def num_unsent(self) -> int:
        """Turns waiting for a place, for their conversation, or for the end of a pause."""
        return self.order.num_waiting + self.num_held + len(self._pausing)

    # turns that wait for a place

    def add(self, turn: Turn, now: float) -> None:
        """Let a turn wait for a place."""
        if self.order.num_waiting == 0:
            self._waiting.begins(now)
        self.order.add(turn)
        self._watch(turn)

    def served(self, turn: Turn, now: float) -> None:
        """A waiting turn got a place."""
        self.passed(turn)
        self._waiting.served(now)
        self.order.take(turn)

    def passed(self, turn: Turn) -> None:
        """A turn got a place while others wait: its tenant has had what it costs."""
        self.order.charge(turn, turn.input_tokens + self._settings.reserve_output_tokens)

    # turns held behind their conversation

    def hold(self, turn: Turn, now: float) -> None:
        """Let a turn wait until its conversation's KV is on its decoder."""
        conversation = turn.conversation
        if conversation.held is None:
            conversation.held = deque()
        conversation.held.append(turn)
        account = conversation.tenant
        account.holding[conversation.conversation_id] = conversation
        account.num_held += 1
        if self.num_held == 0:
            self._holding.begins(now)
        self.num_held += 1
        self._watch(turn)

    def pop_held(self, conversation: Conversation, now: float) -> Turn | None:
        """The turn held for the longest time, no longer held."""
        if not conversation.held:
            return None
        turn = conversation.held.popleft()
        self._left(conversation)
        self._holding.served(now)
        return turn

    def _left(self, conversation: Conversation) -> None:
        account = conversation.tenant
        account.num_held -= 1
        self.num_held -= 1
        if not conversation.held:
            del account.holding[conversation.conversation_id]

    # turns that pause between two attempts

    def pause(self, turn: Turn, now: float) -> None:
        """Let a turn wait before its next attempt."""
        self._pausing[turn.turn_id] = (now + self._settings.retry_pause_s, turn)
        self._watch(turn)

    def pop_rested(self, now: float) -> Turn | None:
        """A turn whose pause is over, no longer pausing."""
        due = self.next_rested_at_s()
        if due is None or due > now:
            return None
        return self._pausing.pop(next(iter(self._pausing)))[1]

    def next_rested_at_s(self) -> float | None:
        """When the next pause is over."""
        return next(iter(self._pausing.values()))[0] if self._pausing else None

    # all

    def leave(self, turn: Turn) -> None:
        """Take a turn that will not be sent out of wherever it waits."""
        conversation = turn.conversation
        if turn.is_waiting:
            self.order.take(turn)
        elif self._pausing.pop(turn.turn_id, None) is not None:
            return
        elif conversation.held is not None and turn in conversation.held:
            conversation.held.remove(turn)
            self._left(conversation)

    def room_for(
        self, turn: Turn, tenants: Iterable[TenantAccount], *, to_hold: bool
    ) -> Turn | None:
        """Who has to be rejected for `turn` to wait: itself, or another; None if there is room.

        A full queue pushes out the latest turn of the tenant with most turns in it by weight,
        if that is more than the newcomer's tenant has.
        """
        settings, mine = self._settings, turn.conversation.tenant
        most = settings.max_turns_per_tenant
        if most is not None and mine.num_waiting + mine.num_held >= most:
            return turn
        if to_hold:
            is_full = self.num_held >= settings.max_tail_turns
        else:
            is_full = self.order.num_waiting >= settings.max_phase_one_turns
        if not is_full:
            return None
        if not settings.is_fair:
            return turn
        found, largest = mine, (_num_unsent(mine, to_hold) + 1) / mine.weight
        for account in tenants:
            by_weight = _num_unsent(account, to_hold) / account.weight
            if by_weight > largest:
                found, largest = account, by_weight
        if found is mine:
            return turn
        if not to_hold:
            return last_waiting(found)
        held = next(reversed(found.holding.values())).held
        return held[-1] if held else turn

    def retry_after_s(
        self, turn: Turn, tenants: Iterable[TenantAccount], now: float, *, to_hold: bool
    ) -> float:
        """When a turn refused now may come again: as many turns as its tenant has before it, at
        the rate at which the queue is served and the tenant's part of that."""
        mine = turn.conversation.tenant
        others = sum(a.weight for a in tenants if a is not mine and _num_unsent(a, to_hold))
        num_ahead = _num_unsent(mine, to_hold) * (1 + others / mine.weight)
        rate = self._holding if to_hold else self._waiting
        return rate.retry_after_s(num_ahead, now)

    # deadlines

    def pop_overdue(self, now: float) -> Turn | None:
        """An unsent turn whose deadline has passed; the caller takes it out of where it waits."""
        due = self.next_deadline_at_s()
        if due is None or due > now:
            return None
        return heappop(self._by_deadline)[2]

    def next_deadline_at_s(self) -> float | None:
        """The earliest deadline of an unsent turn."""
        heap = self._by_deadline
        while heap and not _is_live(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def _watch(self, turn: Turn) -> None:
        heap = self._by_deadline
        heappush(heap, (turn.deadline_at_s, turn.arrival_number, turn))
        if len(heap) > 4 * self.num_unsent + 256:
            live = {entry[1]: entry for entry in heap if _is_live(entry)}
            self._by_deadline = list(live.values())
            heapify(self._by_deadline)


def _num_unsent(account: TenantAccount, to_hold: bool) -> int:
    return account.num_held if to_hold else account.num_waiting


def _is_live(entry: tuple[float, int, Turn]) -> bool:
    deadline_at_s, _, turn = entry
    return turn.decoder is None and not turn.is_over and turn.deadline_at_s == deadline_at_s
