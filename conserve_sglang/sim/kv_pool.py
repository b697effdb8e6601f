"""A worker's KV pool: what running turns hold, and what idle conversations left in it."""

from collections import OrderedDict

from conserve_sglang.core.ids import ConversationId


class KvPool:
    """Token counts only. `held` belongs to turns that run, `idle` to conversations at rest, which
    are evicted whole, the least recently used first, when a turn needs room."""

    __slots__ = ("_idle", "capacity", "held", "idle", "num_evicted", "peak")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self.idle = 0
        self.peak = 0
        self.num_evicted = 0
        self._idle: OrderedDict[ConversationId, int] = OrderedDict()

    def resident(self, conversation_id: ConversationId) -> int:
        """What an idle conversation still has here; 0 when it has nothing."""
        return self._idle.get(conversation_id, 0)

    def take(self, conversation_id: ConversationId, tokens: int) -> bool:
        """Hold `tokens` for a turn, its conversation's own idle tokens among them. False, and
        nothing changed, when even without all idle conversations there is no room."""
        if self.held + tokens > self.capacity:
            return False
        self.idle -= self._idle.pop(conversation_id, 0)
        self._hold(tokens)
        return True

    def extend(self, tokens: int) -> bool:
        """Hold `tokens` more for a running turn; False, and nothing changed, without room."""
        if self.held + tokens > self.capacity:
            return False
        self._hold(tokens)
        return True

    def _hold(self, tokens: int) -> None:
        self.held += tokens
        used = self.held + self.idle
        while used > self.capacity:
            _, evicted = self._idle.popitem(last=False)
            used -= evicted
            self.num_evicted += 1
        self.idle = used - self.held
        self.peak = max(self.peak, used)

    def give_back(self, conversation_id: ConversationId, tokens: int, keep: int) -> None:
        """A turn lets go of the `tokens` it held; `keep` of them stay as its conversation's."""
        self.held -= tokens
        if keep:
            self.idle += keep - self._idle.pop(conversation_id, 0)
            self._idle[conversation_id] = keep

    def trim(self, conversation_id: ConversationId, tokens: int) -> None:
        """Only the first `tokens` of what an idle conversation has here are still of use."""
        resident = self._idle.get(conversation_id, 0)
        if resident > tokens:
            self._idle[conversation_id] = tokens
            self.idle -= resident - tokens

    def drop(self, conversation_id: ConversationId) -> None:
        """Forget an idle conversation."""
        self.idle -= self._idle.pop(conversation_id, 0)
