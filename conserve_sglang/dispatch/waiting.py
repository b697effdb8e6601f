"""Turns not yet sent: waiting for a place in arrival order, or held behind their conversation."""

from collections import deque
from heapq import heapify, heappop, heappush

from conserve_sglang.dispatch.state import Conversation, Turn


class WaitingLine:
    """The heaps hold stale entries of turns that left; `num_waiting` and `num_held` do not."""

    __slots__ = ("_by_arrival", "_by_deadline", "num_held", "num_waiting")

    def __init__(self) -> None:
        self._by_arrival: list[tuple[int, Turn]] = []
        self._by_deadline: list[tuple[float, int, Turn]] = []
        self.num_waiting = 0
        self.num_held = 0

    @property
    def num_unsent(self) -> int:
        """Turns waiting for a place or for their conversation."""
        return self.num_waiting + self.num_held

    def add(self, turn: Turn) -> None:
        """Let a turn wait for a place."""
        turn.is_waiting = True
        self.num_waiting += 1
        heappush(self._by_arrival, (turn.arrival_number, turn))
        self._watch(turn)

    def hold(self, turn: Turn) -> None:
        """Let a turn wait until its conversation's KV is on its decoder."""
        conversation = turn.conversation
        if conversation.held is None:
            conversation.held = deque()
        conversation.held.append(turn)
        self.num_held += 1
        self._watch(turn)

    def pop_held(self, conversation: Conversation) -> Turn | None:
        """The turn held for the longest time, no longer held."""
        if not conversation.held:
            return None
        self.num_held -= 1
        return conversation.held.popleft()

    def leave(self, turn: Turn) -> None:
        """Take a turn out of wherever it waits."""
        held = turn.conversation.held
        if turn.is_waiting:
            self.take(turn)
        elif held is not None and turn in held:
            held.remove(turn)
            self.num_held -= 1

    def take(self, turn: Turn) -> None:
        """Take a turn out of the line."""
        turn.is_waiting = False
        self.num_waiting -= 1

    def first(self) -> Turn | None:
        """The waiting turn that arrived first."""
        heap = self._by_arrival
        while heap:
            turn = heap[0][1]
            if turn.is_waiting:
                return turn
            heappop(heap)
        return None

    def has_before(self, arrival_number: int) -> bool:
        """Whether a turn that arrived earlier is waiting."""
        first = self.first()
        return first is not None and first.arrival_number < arrival_number

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


def _is_live(entry: tuple[float, int, Turn]) -> bool:
    deadline_at_s, _, turn = entry
    return turn.decoder is None and not turn.is_over and turn.deadline_at_s == deadline_at_s
