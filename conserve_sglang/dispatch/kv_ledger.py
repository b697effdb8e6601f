"""What each worker holds and has been promised, in KV tokens: the key that places turns.

    capacity  |-------------------------------------------------|
    resident  |##############|            contexts of finished turns, until released
    reserved                 |+++++|      turns in flight: their input and room for output
    headroom                       |::|   kept for the next turns of some conversations
    free                              |---------------------|   may be negative: overcommitted

With several routers over the same workers, what the others have there is `foreign`, and not free.

The ledger counts what the dispatcher placed. A worker's own figure leaves out idle conversations
(it calls them evictable), so it cannot be the key.
"""

from heapq import heapify, heappop, heappush
from math import inf

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch.speeds import Speeds
from conserve_sglang.policy.api import Pace, PhaseOneCause


class WorkerState:
    """One worker's account. `epoch` grows when the worker is lost, which voids all older pins.

    `intake` is how many more turns it may be given, None for any number; while that is 0,
    `closed_for` says why its conversations go elsewhere; `lost_for`, why those do whose pin was
    voided when it was lost last. `num_answered` only grows. Of turns sent
    there, `num_running` are to be decoded, and `pending_tokens` of their prompts to be prefilled.
    `busy_until_s`: until when it counts as busy, since it answered a turn so; see `busy`.
    """

    __slots__ = (
        "backlog_tokens",
        "busy_until_s",
        "closed_for",
        "epoch",
        "foreign_backlog_tokens",
        "foreign_tokens",
        "headroom_tokens",
        "intake",
        "is_up",
        "lost_for",
        "num_answered",
        "num_conversations",
        "num_running",
        "order",
        "pending_tokens",
        "reserved_tokens",
        "resident_tokens",
        "spec",
        "speeds",
    )

    def __init__(self, spec: WorkerSpec, order: int) -> None:
        self.spec = spec
        self.order = order
        self.epoch = 0
        self.is_up = False
        self.num_answered = 0
        self.foreign_tokens = 0  # of other replicas; theirs to void when the worker is lost
        self.foreign_backlog_tokens = 0
        self.intake: int | None = None
        self.closed_for = PhaseOneCause.DRAINED
        self.lost_for = PhaseOneCause.DECODER_LOST
        self.clear()

    def clear(self) -> None:
        """Empty the account, as a worker is when it starts."""
        self.resident_tokens = 0
        self.reserved_tokens = 0
        self.headroom_tokens = 0
        self.backlog_tokens = 0
        self.pending_tokens = 0
        self.num_running = 0
        self.num_conversations = 0
        self.busy_until_s = -inf
        self.speeds = Speeds()

    @property
    def takes_turns(self) -> bool:
        """Whether it may be given turns."""
        return self.is_up and self.intake != 0

    @property
    def free_tokens(self) -> int:
        """Capacity less all that is taken or kept; negative when overcommitted."""
        taken = self.resident_tokens + self.reserved_tokens + self.headroom_tokens
        return self.spec.kv_capacity_tokens - taken - self.foreign_tokens


class Ranking:
    """Workers by a number that changes often; the least is found in O(log n).

    A heap with stale entries: an entry counts only while it equals the worker's current key.
    """

    __slots__ = ("_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        self._keys: dict[int, int] = {}

    def set(self, order: int, key: int) -> None:
        """Give worker number `order` its current key."""
        keys = self._keys
        if keys.get(order) == key:
            return
        keys[order] = key
        heappush(self._heap, (key, order))
        if len(self._heap) > 4 * len(keys) + 64:
            self._heap = [(each_key, each) for each, each_key in keys.items()]
            heapify(self._heap)

    def drop(self, order: int) -> None:
        """Leave a worker out."""
        self._keys.pop(order, None)

    def least(self) -> int | None:
        """The worker with the least key, the earliest registered among equals; None when empty."""
        heap = self._heap
        while heap:
            key, order = heap[0]
            if self._keys.get(order) == key:
                return order
            heappop(heap)
        return None


class KvLedger:
    """The accounts of all workers; the `ClusterView` that policies read."""

    __slots__ = (
        "_backlog",
        "_by_id",
        "_by_order",
        "_capacity",
        "_changed",
        "_free",
        "_max_backlog",
        "_up",
        "has_bands",
        "largest_pool",
        "line",
    )

    def __init__(self, max_prefill_backlog_tokens: int) -> None:
        self._max_backlog = max_prefill_backlog_tokens
        self._by_id: dict[WorkerId, WorkerState] = {}
        self._by_order: list[WorkerState | None] = []  # None: removed, to be taken again
        self._free = {role: Ranking() for role in Role}
        # Workers whose place in the ranking is not what their account says; ranked when asked.
        self._changed: set[WorkerState] = set()
        self._backlog = Ranking()
        self._up: dict[Role, tuple[WorkerId, ...]] = dict.fromkeys(Role, ())
        self._capacity = dict.fromkeys(Role, 0)
        self.largest_pool = 0  # of all workers that decode, in tokens
        self.has_bands = False  # some tiers are for contexts up to a bound
        self.line = (0, 0)  # turns that wait for a place besides the one asked about; their tokens

    # what policies read

    def workers(self, role: Role) -> tuple[WorkerId, ...]:
        """Workers of a role that take turns, in order of registration."""
        return self._up[role]

    def most_free(self, role: Role) -> WorkerId | None:
        """The worker of a role with most free KV tokens."""
        self._rank_changed()
        return self._name(self._free[role].least())

    def least_backlog_prefiller(self) -> WorkerId | None:
        """The prefiller with fewest prompt tokens sent to it and not yet prefilled."""
        self._rank_changed()
        return self._name(self._backlog.least())

    def takes_prompts(self, prefiller: WorkerId) -> bool:
        """Whether a prefiller's backlog is below the bound."""
        state = self._by_id[prefiller]
        return state.backlog_tokens + state.foreign_backlog_tokens < self._max_backlog

    def free_tokens(self, worker_id: WorkerId) -> int:
        """KV tokens neither resident nor reserved; 0 when overcommitted."""
        return max(0, self._by_id[worker_id].free_tokens)

    def largest_capacity(self, role: Role) -> int:
        """Size of the largest KV pool of a role, in tokens, of workers up or down."""
        return self._capacity[role]

    def num_running(self, worker_id: WorkerId) -> int:
        """Turns sent to a worker to be decoded there, and not over."""
        return self._by_id[worker_id].num_running

    def pending_tokens(self, worker_id: WorkerId) -> int:
        """Prompt tokens sent to a worker to be prefilled there, and not prefilled yet."""
        return self._by_id[worker_id].pending_tokens

    def prefill_s_per_token(self, worker_id: WorkerId) -> float | None:
        """Seconds a token of a worker's recent prefills of long prompts."""
        return self._by_id[worker_id].speeds.prefill_s_per_token

    def pace(self, worker_id: WorkerId) -> Pace | None:
        """How fast a worker's answers came lately."""
        return self._by_id[worker_id].speeds.pace

    def num_waiting(self) -> int:
        """Turns that wait for a place, the one that is asked about left out."""
        return self.line[0]

    def waiting_tokens(self) -> int:
        """What the decoders lack of these turns' prompts."""
        return self.line[1]

    # what the dispatcher does

    def state(self, worker_id: WorkerId) -> WorkerState:
        """A known worker's account."""
        return self._by_id[worker_id]

    def known(self, worker_id: WorkerId) -> WorkerState | None:
        """A worker's account, up or down; None for one never announced or removed."""
        return self._by_id.get(worker_id)

    def find(self, worker_id: WorkerId | None) -> WorkerState | None:
        """A worker's account if the worker is up."""
        state = None if worker_id is None else self._by_id.get(worker_id)
        return state if state is not None and state.is_up else None

    def states(self) -> tuple[WorkerState, ...]:
        """All known workers, in order of registration."""
        return tuple(state for state in self._by_order if state is not None)

    def open(self, spec: WorkerSpec) -> None:
        """Start an empty account for a worker that is up."""
        state = self._by_id.get(spec.worker_id)
        if state is None:
            state = self._enlist(spec)
        else:
            self.close(spec.worker_id)
            state.spec = spec
        state.is_up = True
        state.intake = None
        self._changed.add(state)
        self._refresh(spec.role)

    def close(self, worker_id: WorkerId, cause: PhaseOneCause = PhaseOneCause.DECODER_LOST) -> bool:
        """Void a worker's account, and its pins for this cause; False when it is not up."""
        state = self._by_id.get(worker_id)
        if state is None or not state.is_up:
            return False
        state.is_up = False
        state.epoch += 1
        state.lost_for = cause
        state.clear()
        self._unrank(state)
        return True

    def limit(self, worker_id: WorkerId, intake: int | None, closed_for: PhaseOneCause) -> None:
        """Say how many more turns a worker may be given, and why none if there are none."""
        state = self._by_id.get(worker_id)
        if state is None or not state.is_up:
            return
        state.intake, state.closed_for = intake, closed_for
        self._unrank(state)
        self._changed.add(state)

    def take_in(self, state: WorkerState) -> None:
        """Count a turn that a worker is given."""
        if state.intake:
            state.intake -= 1
            if state.intake == 0:
                self._unrank(state)

    def remove(self, worker_id: WorkerId) -> None:
        """Forget a worker; its name may come again, for another one."""
        self.close(worker_id)
        state = self._by_id.pop(worker_id, None)
        if state is not None:
            self._by_order[state.order] = None
            self._refresh(state.spec.role)

    def add_resident(self, state: WorkerState, tokens: int) -> None:
        """Count `tokens` more (or fewer) as held for conversations at rest or in flight."""
        state.resident_tokens += tokens
        self._changed.add(state)

    def add_reserved(self, state: WorkerState, tokens: int) -> None:
        """Count `tokens` more (or fewer) as promised to turns in flight."""
        state.reserved_tokens += tokens
        self._changed.add(state)

    def add_headroom(self, state: WorkerState, tokens: int) -> None:
        """Count `tokens` more (or fewer) as kept for conversations' next turns."""
        state.headroom_tokens += tokens
        self._changed.add(state)

    def add_backlog(self, state: WorkerState, tokens: int) -> None:
        """Count `tokens` more (or fewer) as sent to a prefiller and not yet prefilled."""
        state.backlog_tokens += tokens
        self._changed.add(state)

    def set_foreign(self, state: WorkerState, kv_tokens: int, backlog_tokens: int) -> None:
        """State what other replicas have on a worker."""
        if (kv_tokens, backlog_tokens) == (state.foreign_tokens, state.foreign_backlog_tokens):
            return
        state.foreign_tokens = kv_tokens
        state.foreign_backlog_tokens = backlog_tokens
        self._changed.add(state)

    def _rank_changed(self) -> None:
        for state in self._changed:
            if not state.takes_turns:
                continue
            if state.spec.role is Role.PREFILL:
                backlog = state.backlog_tokens + state.foreign_backlog_tokens
                self._backlog.set(state.order, backlog)
            else:
                self._free[state.spec.role].set(state.order, -state.free_tokens)
        self._changed.clear()

    def _refresh(self, role: Role) -> None:
        known = [state for state in self.states() if state.spec.role is role]
        self.has_bands = any(each.spec.max_context_tokens for each in self.states())
        self._up[role] = tuple(state.spec.worker_id for state in known if state.takes_turns)
        self._capacity[role] = max((s.spec.kv_capacity_tokens for s in known), default=0)
        self.largest_pool = max(self._capacity[Role.DECODE], self._capacity[Role.MIXED])

    def _enlist(self, spec: WorkerSpec) -> WorkerState:
        order = len(self._by_order)
        if None in self._by_order:
            order = self._by_order.index(None)
            self._by_order.pop(order)
        state = self._by_id[spec.worker_id] = WorkerState(spec, order)
        self._by_order.insert(order, state)
        return state

    def _unrank(self, state: WorkerState) -> None:
        self._free[state.spec.role].drop(state.order)
        self._backlog.drop(state.order)
        self._refresh(state.spec.role)

    def _name(self, order: int | None) -> WorkerId | None:
        state = None if order is None else self._by_order[order]
        return None if state is None else state.spec.worker_id
