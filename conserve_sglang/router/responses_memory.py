"""Which stored responses a restarted router would not know yet."""

from collections.abc import Iterable

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.responses_store import ResponseStore, Stored
from conserve_sglang.state import SavedResponse

MAX_WRITTEN_BYTES = 4 * 1024 * 1024  # at a time
Key = tuple[TenantId, str]


class ResponsesMemory:
    """Notes what changed in a store, from `restore` on, until it is written."""

    def __init__(self, responses: ResponseStore) -> None:
        self._responses = responses
        self._changed: dict[Key, None] = {}  # in the order it happened in

    def __len__(self) -> int:
        return len(self._changed)

    def restore(self, saved: Iterable[SavedResponse]) -> None:
        """Go on with what was stored; the store may be smaller now."""
        found: dict[Key, Stored] = {}
        for each in saved:
            key = (TenantId(each.tenant), each.response_id)
            found[key] = Stored(each.messages, each.previous, each.response)
            self._responses.put(*key, found[key])
        for key, stored in found.items():
            if self._responses.get(*key) != stored:
                self._changed[key] = None
        self._responses.changed = self._responses.lightened = self._note

    def take(self) -> tuple[list[SavedResponse], list[Key]]:
        """What to write, and the keys of what to forget; counts as written from now on."""
        saved: list[SavedResponse] = []
        gone: list[Key] = []
        num_bytes = 0
        while self._changed and num_bytes < MAX_WRITTEN_BYTES:
            key = next(iter(self._changed))
            del self._changed[key]
            stored = self._responses.get(*key)
            if stored is None:
                gone.append(key)
            else:
                previous, messages = stored.previous, stored.messages
                saved.append(SavedResponse(*key, previous, messages, stored.response))
                num_bytes += len(stored.messages) + len(stored.response)
        return saved, gone

    def put_back(self, saved: Iterable[SavedResponse], gone: Iterable[Key]) -> None:
        """What was taken could not be written."""
        for each in saved:
            self._note(TenantId(each.tenant), each.response_id)
        for key in gone:
            self._note(*key)

    def _note(self, tenant: TenantId, response_id: str) -> None:
        self._changed[tenant, response_id] = None
