"""The answers that a later request may name by `previous_response_id`.

SGLang keeps none of them with prefill/decode disaggregation, so the brain does, in memory: of each
response what it added to the conversation, and which response it followed.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from conserve_sglang.core.ids import TenantId

_OVERHEAD_BYTES = 400  # what an entry costs beside its text


@dataclass(frozen=True, slots=True)
class Stored:
    """One response: chat messages as JSON, with commas between them."""

    messages: bytes
    previous: str | None


class ResponseStore:
    """Responses by tenant and id, the most recently used, up to a number of bytes.

    `changed` is told which was stored, dropped or let go of.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[TenantId, str], Stored] = OrderedDict()
        self.num_bytes = 0
        self.changed: Callable[[TenantId, str], None] = lambda tenant, response_id: None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, tenant: TenantId, response_id: str, stored: Stored) -> None:
        """Keep a response, and let go of those used longest ago."""
        num_bytes = len(stored.messages) + _OVERHEAD_BYTES
        if num_bytes > self.max_bytes:
            return
        self._entries[tenant, response_id] = stored
        self.changed(tenant, response_id)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            key, oldest = self._entries.popitem(last=False)
            self.num_bytes -= len(oldest.messages) + _OVERHEAD_BYTES
            self.changed(*key)

    def drop(self, tenant: TenantId, response_id: str) -> bool:
        """Forget a response; what follows it can then not be continued either."""
        stored = self._entries.pop((tenant, response_id), None)
        if stored is None:
            return False
        self.num_bytes -= len(stored.messages) + _OVERHEAD_BYTES
        self.changed(tenant, response_id)
        return True

    def get(self, tenant: TenantId, response_id: str) -> Stored | None:
        """A response by itself; that does not count as a use."""
        return self._entries.get((tenant, response_id))

    def history(self, tenant: TenantId, response_id: str) -> list[bytes] | None:
        """All that was said up to a response; None if that is not known, or not to this tenant."""
        found: list[bytes] = []
        at: str | None = response_id
        while at is not None:
            stored = self._entries.get((tenant, at))
            if stored is None:
                return None
            self._entries.move_to_end((tenant, at))
            found.append(stored.messages)
            at = stored.previous
        return found[::-1]
