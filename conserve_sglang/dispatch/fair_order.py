"""The order of turns that wait for a place: fair between tenants, by arrival within one.

Start-time fair queueing (Goyal, Vin, Cheng, 1996). Each tenant's first waiting turn has a start
tag in virtual time, and the least tag goes next; being served moves its tenant's tag on by the
turn's cost over the tenant's weight. A tenant that begins to wait starts at the tag of whoever
was served last, so nobody saves up a claim while it asks for nothing. When nobody waits any more,
all begin alike again. With one tenant this is arrival order.
"""

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace

from conserve_sglang.dispatch.state import TenantAccount, Turn

MAX_ASIDE = 8
PUT_LAST = 1 << 48


class FairOrder:
    """Waiting turns. Entries of the heap and of the tenants' lines may be stale; counts are not.

    Times: O(log tenants) for a turn; a turn that comes back to the line is sorted in.
    """

    __slots__ = (
        "_aside",
        "_heap",
        "_is_fair",
        "_latest",
        "_virtual",
        "holders",
        "num_waiting",
        "waiting_tokens",
    )

    def __init__(self, *, is_fair: bool) -> None:
        self._is_fair = is_fair
        self._heap: list[tuple[float, int, TenantAccount]] = []
        self._aside: list[tuple[float, int, TenantAccount]] = []
        self._virtual = 0.0  # start tag of the turn served last
        self._latest = 0.0  # the largest finish tag given
        self.num_waiting = 0
        self.waiting_tokens = 0
        self.holders: dict[int, Turn] = {}  # of conversations that had KV when they came; by number

    def besides(self, turn: Turn) -> tuple[int, int]:
        """How many other turns wait, and what the decoders lack of their prompts, in tokens."""
        if turn.is_waiting:
            return self.num_waiting - 1, self.waiting_tokens - turn.line_tokens
        return self.num_waiting, self.waiting_tokens

    def add(self, turn: Turn) -> None:
        """Let a turn wait."""
        account = turn.conversation.tenant
        line = account.waiting
        if account.num_waiting == 0:
            line.clear()
            account.start = self._next_start(account)
        elif len(line) > 2 * account.num_waiting + 64:
            account.waiting = line = deque(each for each in line if each.is_waiting)
        if (turn.attempts or turn.num_continuations) and turn in line:
            line.remove(turn)  # where it stood before it was sent, and came back
        turn.is_waiting = True
        turn.line_tokens = max(1, turn.input_tokens - turn.conversation.resident_tokens)
        self.waiting_tokens += turn.line_tokens
        if turn.conversation.decoder is not None:
            self.holders[turn.arrival_number] = turn
        account.num_waiting += 1
        self.num_waiting += 1
        number = turn.rank
        at = len(line)
        while at and line[at - 1].rank > number:
            at -= 1
        line.insert(at, turn)
        if at == 0:
            if len(self._heap) > 2 * self.num_waiting + 64:
                self._rebuild()
            heappush(self._heap, (account.start, number, account))

    def take(self, turn: Turn) -> None:
        """A turn stops waiting."""
        account = turn.conversation.tenant
        turn.is_waiting = False
        self.waiting_tokens -= turn.line_tokens
        self.holders.pop(turn.arrival_number, None)
        account.num_waiting -= 1
        self.num_waiting -= 1
        if account.waiting[0] is turn:
            account.waiting.popleft()
        if self.num_waiting == 0:
            self._heap.clear()
            self._virtual = self._latest

    def put_last(self, turn: Turn) -> None:
        """Let the first turn of its tenant go behind that tenant's others from now on."""
        self.take(turn)
        turn.rank += PUT_LAST
        self.add(turn)

    def charge(self, turn: Turn, cost: float) -> None:
        """A turn was served while others wait, or had to wait itself."""
        if not self._is_fair:
            return
        account = turn.conversation.tenant
        start = account.start if account.num_waiting else self._next_start(account)
        self._virtual = max(self._virtual, start)
        account.start = account.finish = start + cost / account.weight
        self._latest = max(self._latest, account.finish)

    def first(self) -> Turn | None:
        """The turn that goes next."""
        heap = self._heap
        while heap:
            start, number, account = heap[0]
            turn = _head(account)
            if turn is None:
                heappop(heap)
            elif account.start == start and turn.rank == number:
                return turn
            else:
                heapreplace(heap, (account.start, turn.rank, account))
        return None

    def step_aside(self, allowance: float) -> bool:
        """The first turn finds no room: let the next tenant's first turn be looked at instead.

        False if nobody may pass: those whose tags are ahead by more than `allowance` may not, so
        that a turn which needs much room is not passed for ever. `step_back` ends it.
        """
        if not self._is_fair or len(self._aside) == MAX_ASIDE:
            return False
        self._aside.append(heappop(self._heap))
        following = self.first()
        if following is None:
            return False
        return following.conversation.tenant.start <= self._aside[0][0] + allowance

    def step_back(self) -> None:
        """Those who stepped aside are in line again."""
        for entry in self._aside:
            heappush(self._heap, entry)
        self._aside.clear()

    def goes_before(self, turn: Turn) -> bool:
        """Whether a waiting turn goes before this one, which does not wait."""
        first = self.first()
        if first is None:
            return False
        account = turn.conversation.tenant
        start = account.start if account.num_waiting else self._next_start(account)
        return (first.conversation.tenant.start, first.rank) < (
            start,
            turn.rank,
        )

    def _rebuild(self) -> None:
        waiting = dict.fromkeys(account for _, _, account in self._heap if account.num_waiting)
        heads = [(account, _head(account)) for account in waiting]
        self._heap = [(each.start, head.rank, each) for each, head in heads if head]
        heapify(self._heap)

    def _next_start(self, account: TenantAccount) -> float:
        return max(self._virtual, account.finish)


def last_waiting(account: TenantAccount) -> Turn:
    """The turn of a tenant that goes last; it must have one that waits."""
    line = account.waiting
    while not line[-1].is_waiting:
        line.pop()
    return line[-1]


def _head(account: TenantAccount) -> Turn | None:
    line = account.waiting
    while line and not line[0].is_waiting:
        line.popleft()
    return line[0] if line else None
