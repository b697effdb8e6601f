"""Turns waiting for a place, in arrival order, and the deadlines of all turns not yet sent."""

from heapq import heapify, heappop, heappush

from conserve_sglang.dispatch.state import Turn


class WaitingLine:
    """Two heaps with stale entries of turns that left; `num_waiting` counts the true ones."""

    __slots__ = ("_by_arrival", "_by_deadline", "num_waiting")

    def __init__(self) -> None:
        self._by_arrival: list[tuple[int, Turn]] = []
        self._by_deadline: list[tuple[float, int, Turn]] = []
        self.num_waiting = 0

    def add(self, turn: Turn) -> None:
        """Let a turn wait for a place."""
        turn.is_waiting = True
        self.num_waiting += 1
        heappush(self._by_arrival, (turn.arrival_number, turn))
        self.watch(turn)

    def watch(self, turn: Turn) -> None:
        """Mind the deadline of a turn that waits, here or for its conversation."""
        heap = self._by_deadline
        heappush(heap, (turn.deadline_at_s, turn.arrival_number, turn))
        if len(heap) > 4 * self.num_waiting + 256:
            live = {entry[1]: entry for entry in heap if _is_unsent(entry[2])}
            self._by_deadline = list(live.values())
            heapify(self._by_deadline)

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
        while heap and not _is_unsent(heap[0][2]):
            heappop(heap)
        return heap[0][0] if heap else None


def _is_unsent(turn: Turn) -> bool:
    return turn.decoder is None and not turn.is_over
