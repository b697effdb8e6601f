"""The answers that a later request may name by `previous_response_id`, or ask for.

SGLang keeps none of them with prefill/decode disaggregation, so the brain does, in memory: of each
response what it added to the conversation, and which response it followed. Beside that, and with a
bound of its own, lies the response object as its client got it: it may be many times as long, since
it repeats tools and instructions, and must not push out what conversations go on from.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from conserve_sglang.core.ids import TenantId

_OVERHEAD_BYTES = 400  # what an entry costs beside its text
_OBJECT_OVERHEAD_BYTES = 200  # and what an object costs beside its own
Key = tuple[TenantId, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """One response: chat messages as JSON, with commas between them; and the response object as
    JSON, b"" where that is not kept."""

    messages: bytes
    previous: str | None
    response: bytes = b""


class ResponseStore:
    """Responses by tenant and id, the most recently used, up to a number of bytes; and their
    objects, up to another.

    `changed` is told which was stored, dropped or let go of; `lightened` which lost its object
    alone.
    """

    def __init__(self, max_bytes: int, max_object_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.max_object_bytes = max_object_bytes
        self._entries: OrderedDict[Key, Stored] = OrderedDict()
        self._objects: OrderedDict[Key, int] = OrderedDict()  # what each counts for
        self.num_bytes = 0
        self.num_object_bytes = 0
        self.changed: Callable[[TenantId, str], None] = lambda tenant, response_id: None
        self.lightened: Callable[[TenantId, str], None] = lambda tenant, response_id: None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, tenant: TenantId, response_id: str, stored: Stored) -> None:
        """Keep a response, and let go of those used longest ago."""
        num_bytes = len(stored.messages) + _OVERHEAD_BYTES
        if num_bytes > self.max_bytes:
            return
        key = (tenant, response_id)
        self._remove(key)
        self._entries[key] = self._with_object(key, stored)
        self.changed(tenant, response_id)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            oldest = next(iter(self._entries))
            self._remove(oldest)
            self.changed(*oldest)
        while self.num_object_bytes > self.max_object_bytes:
            oldest, object_bytes = self._objects.popitem(last=False)
            self.num_object_bytes -= object_bytes
            self._entries[oldest] = replace(self._entries[oldest], response=b"")
            self.lightened(*oldest)

    def _with_object(self, key: Key, stored: Stored) -> Stored:
        """Count a response's object, or leave it out."""
        if not stored.response:
            return stored
        object_bytes = len(stored.response) + _OBJECT_OVERHEAD_BYTES
        if object_bytes > self.max_object_bytes:
            return replace(stored, response=b"")
        self._objects[key] = object_bytes
        self.num_object_bytes += object_bytes
        return stored

    def _remove(self, key: Key) -> bool:
        stored = self._entries.pop(key, None)
        if stored is None:
            return False
        self.num_bytes -= len(stored.messages) + _OVERHEAD_BYTES
        self.num_object_bytes -= self._objects.pop(key, 0)
        return True

    def drop(self, tenant: TenantId, response_id: str) -> bool:
        """Forget a response; what follows it can then not be continued either."""
        was_there = self._remove((tenant, response_id))
        if was_there:
            self.changed(tenant, response_id)
        return was_there

    def get(self, tenant: TenantId, response_id: str) -> Stored | None:
        """A response by itself; that does not count as a use."""
        return self._entries.get((tenant, response_id))

    def object_of(self, tenant: TenantId, response_id: str) -> bytes | None:
        """A response as its client got it; None if it is not known, or without its object."""
        stored = self._entries.get((tenant, response_id))
        if stored is None or not stored.response:
            return None
        self._objects.move_to_end((tenant, response_id))
        return stored.response

    def history(self, tenant: TenantId, response_id: str) -> list[bytes] | None:
        """All that was said up to a response; None if that is not known, or not to this tenant."""
        chain = self.chain(tenant, response_id)
        return None if chain is None else [messages for _, messages in chain]

    def chain(self, tenant: TenantId, response_id: str) -> list[tuple[str, bytes]] | None:
        """The same, each piece with the id of the response that added it."""
        found: list[tuple[str, bytes]] = []
        at: str | None = response_id
        while at is not None:
            stored = self._entries.get((tenant, at))
            if stored is None:
                return None
            self._entries.move_to_end((tenant, at))
            found.append((at, stored.messages))
            at = stored.previous
        return found[::-1]
