"""What a replica has of the responses that all replicas share, and what Redis has to be told.

A response stored here is to be written there; one read from there is a copy. Redis has the last
word on what there is, so whenever it is met again it is asked about all that is here: what it lost
is written again, what was deleted meanwhile goes. What Redis has not confirmed for as long as it
remembers what was deleted is not brought back.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.replica_line import BATCH, Then
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.state.shared import Call

logger = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024  # of text at a time; others wait for the line
OVERHEAD_BYTES = 700  # what an entry costs in Redis beside its text: 630 to 850 were seen
MAX_DELETED = 4096
MAX_TRIES = 2  # for one that is larger, and may be what the line breaks at
Key = tuple[TenantId, str]


class Copies:
    """Notes what changes in a store from now on."""

    def __init__(
        self,
        store: ResponseStore,
        life_s: float,
        now: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._wake = wake  # there is news
        self._life_s = life_s
        self._now = now
        self._since_s: dict[Key, float] = {}  # stored, or last confirmed by Redis
        self._unconfirmed: set[Key] = set()  # since Redis was met
        self._unwritten: dict[Key, None] = {}
        self._unchecked: dict[Key, None] = {}
        self._num_tries: dict[Key, int] = {}
        self._deleted: OrderedDict[Key, float] = OrderedDict()
        self._to_delete: dict[Key, None] = {}
        store.changed = self._changed

    @property
    def num_unchecked(self) -> int:
        """How many Redis has to be asked about since it was met."""
        return len(self._unchecked)

    @property
    def num_unsaid(self) -> int:
        """How many Redis has to be told of or asked about."""
        return len(self._unwritten) + len(self._unchecked) + len(self._to_delete)

    def _changed(self, tenant: TenantId, response_id: str) -> None:
        key = (tenant, response_id)
        if self._store.get(*key) is not None:
            self._since_s[key] = self._now()
            self._unconfirmed.add(key)
            self._unwritten[key] = None
            self._wake()
            return
        for known in (self._since_s, self._unwritten, self._unchecked, self._num_tries):
            known.pop(key, None)  # let go of here; Redis has a bound of its own
        self._unconfirmed.discard(key)

    # while Redis is there

    def unconfirmed(self, key: Key) -> Stored | None:
        """A response that Redis may not have heard of yet."""
        return self._store.get(*key) if key in self._unconfirmed else None

    def confirmed(self, key: Key) -> Stored | None:
        """Redis has a response: this replica's copy of it, if there is one."""
        stored = self._store.get(*key)
        if stored is not None:
            self._since_s[key] = self._now()
            self._unconfirmed.discard(key)
            self._unwritten.pop(key, None)
            self._unchecked.pop(key, None)
        return stored

    def add(self, key: Key, stored: Stored) -> None:
        """Have a copy of what Redis has."""
        if key not in self._deleted and self._store.get(*key) is None:
            self._store.put(*key, stored)
        self.confirmed(key)

    def missed(self, key: Key) -> None:
        """Redis does not have a response any more."""
        if key not in self._unconfirmed:
            self._store.drop(*key)

    def deleted(self, key: Key) -> None:
        """A client deleted a response, here or elsewhere."""
        self._deleted[key] = self._now()
        if len(self._deleted) > MAX_DELETED:
            self._deleted.popitem(last=False)
        self._store.drop(*key)

    def met(self) -> None:
        """Redis is there, again; it may have lost everything, or know better."""
        oldest_s = self._now() - self._life_s
        for key, since_s in tuple(self._since_s.items()):
            if since_s < oldest_s:
                self._store.drop(*key)
        for key, at_s in tuple(self._deleted.items()):
            if at_s < oldest_s:
                del self._deleted[key]
        self._unwritten.clear()
        self._unchecked = dict.fromkeys(self._since_s)
        self._unconfirmed = set(self._since_s)
        self._to_delete = dict.fromkeys(self._deleted)

    def news(self) -> list[tuple[Call, Then]]:
        """What there is to say to Redis, up to a batch."""
        calls: list[tuple[Call, Then]] = []
        for key in _taken(self._to_delete):
            calls.append((("DELETE", (*key, 1)), _nothing))
        if keys := _taken(self._unchecked):
            names = tuple(name for key in keys for name in key)
            calls.append((("KNOWN", names), partial(self._checked, keys)))
        num_bytes = 0
        while self._unwritten and len(calls) < BATCH and num_bytes < MAX_BYTES:
            key = next(iter(self._unwritten))
            del self._unwritten[key]
            stored = self._store.get(*key)
            if stored is None:
                continue
            counted_bytes = len(stored.messages) + OVERHEAD_BYTES
            if counted_bytes <= self._store.max_bytes:
                num_bytes += _length(stored)
                calls.append((self._keep(key, stored, counted_bytes), partial(self._written, key)))
        return calls

    def _keep(self, key: Key, stored: Stored, counted_bytes: int) -> Call:
        store, response = self._store, stored.response
        object_bytes = len(response) + OVERHEAD_BYTES
        if object_bytes > store.max_object_bytes:
            response = b""
        values = stored.messages, stored.previous or "", counted_bytes, store.max_bytes
        return "KEEP", (*key, *values, response, object_bytes, store.max_object_bytes)

    def _written(self, key: Key, answer: Any) -> None:
        if answer:
            self.confirmed(key)
        elif answer is not None:
            self.deleted(key)
        elif (stored := self._store.get(*key)) and _length(stored) > MAX_BYTES:
            self._num_tries[key] = self._num_tries.get(key, 0) + 1
            if self._num_tries[key] == MAX_TRIES:
                logger.warning("Redis did not take a response of %d bytes", _length(stored))

    def _checked(self, keys: list[Key], answer: Any) -> None:
        for key, found in zip(keys, answer or (), strict=False):
            if found == b"kept":
                self.confirmed(key)
            elif found == b"deleted":
                self.deleted(key)
            elif key in self._unconfirmed and self._num_tries.get(key, 0) < MAX_TRIES:
                self._unwritten[key] = None


def _length(stored: Stored) -> int:
    """How much there is to write."""
    return len(stored.messages) + len(stored.response)


def _taken(keys: dict[Key, None]) -> list[Key]:
    """Take out the first, up to a batch."""
    taken = list(islice(keys, BATCH))
    for key in taken:
        del keys[key]
    return taken


def _nothing(answer: Any) -> None:
    pass
