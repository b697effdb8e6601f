"""The conversations the router knows by name, by key, or by their history.

A conversation belongs to one tenant. Its key, which is what workers see, is a keyed hash of tenant
and name: routers that share the secret derive the same key, nobody else can, and one tenant's name
is never another's key. A conversation its client did not name is named by a random label. What a
client calls a conversation stays here. Entries go when the dispatcher has let go of it.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.estimate import Counted
from conserve_sglang.router.history import FiledAt, HistoryIndex, Trail
from conserve_sglang.router.used import Used

MAX_NAME_BYTES = 256
MAX_SHOWN_BYTES = 80  # of a name in a log
KEY_BEGINS = "conv-"
_PRINTABLE = re.compile(rb"[!-~]+(?: [!-~]+)*\Z")


def conversation_key(secret: bytes, tenant: TenantId, name: bytes) -> ConversationId:
    """The key of what a tenant calls `name`; no tenant's name has a zero byte."""
    hashed = _keyed(secret).copy()
    hashed.update(b"%b\0%b" % (tenant.encode(), name))
    return ConversationId(KEY_BEGINS + hashed.hexdigest())


@lru_cache(maxsize=4)
def _keyed(secret: bytes) -> blake2b:
    return blake2b(digest_size=16, key=secret, person=b"conversation")


class Conversation:
    """One conversation: whose it is, its key, its name, and where its history is filed."""

    __slots__ = (
        "began_at_s",
        "counted",
        "ended_at_s",
        "energy",
        "failed_attempts",
        "filed_at",
        "header_line",
        "key",
        "last_turn_seen",
        "name",
        "num_open_turns",
        "past_turns",
        "session_field",
        "tenant",
    )

    def __init__(self, key: ConversationId, tenant: TenantId, name: bytes) -> None:
        self.key = key
        self.tenant = tenant
        self.name = name
        told = name if _PRINTABLE.match(name) else key.encode()
        self.header_line = b"x-conversation-id: " + told + b"\r\n"
        self.session_field = b'"session_id":"' + key.encode() + b'",'
        self.filed_at: FiledAt | None = None
        self.counted: Counted | None = None  # the last answered prompt, where it was text
        self.energy: Used | None = None  # where agents tell some
        self.ended_at_s = 0.0  # when its last turn was over
        self.num_open_turns = 0
        self.past_turns = self.failed_attempts = b""  # the journal's
        # Arrival of turn 1, until the user has had an answer that calls no tool.
        self.began_at_s: float | None = None
        self.last_turn_seen = 0

    def see(self, turn_index: int, arrived_at_s: float) -> None:
        """A turn is over. When turn 1 arrived is not known where others went elsewhere."""
        if turn_index == 1:
            self.began_at_s = arrived_at_s
        elif turn_index > self.last_turn_seen + 1:
            self.began_at_s = None
        self.last_turn_seen = turn_index


UNIDENTIFIED = Conversation(ConversationId(""), DEFAULT_TENANT.tenant_id, b"")
"""Stands for the conversation of a turn until that is known."""
UNIDENTIFIED.header_line = b""


def shown_name(conversation: Conversation) -> str | None:
    """A name for a log that may have it: cut, and to be escaped by the log's format."""
    name = conversation.name
    shown = name[:MAX_SHOWN_BYTES].decode("utf-8", "replace")
    return (shown if len(name) <= MAX_SHOWN_BYTES else shown + "...") or None


class ConversationTable:
    """All conversations. `is_live` asks the dispatcher whether it still holds one."""

    def __init__(self, is_live: Callable[[ConversationId], bool], secret: bytes) -> None:
        self._is_live = is_live
        self._secret = secret
        self._by_key: dict[str, Conversation] = {}
        self._by_name: dict[TenantId, dict[bytes, Conversation]] = {}
        self._sweep: Iterator[str] = iter(())
        self.history = HistoryIndex()
        self.changed: Callable[[str], object] = _nothing  # is told keys, often the same

    def __len__(self) -> int:
        return len(self._by_key)

    def keys(self) -> Iterable[str]:
        """Of all of them."""
        return self._by_key.keys()

    def key_of(self, tenant: TenantId, name: bytes) -> ConversationId:
        """The key of what a tenant calls `name`, known here or not."""
        return conversation_key(self._secret, tenant, name)

    def named(self, tenant: TenantId, name: bytes) -> Conversation:
        """The conversation a tenant calls `name`; a new one if it is unknown."""
        return self.find(tenant, name) or self._add(tenant, name)

    def find(self, tenant: TenantId, name: bytes) -> Conversation | None:
        """A tenant's conversation by its name or its key; None if this tenant has none such."""
        names = self._by_name.get(tenant)
        conversation = None if names is None else names.get(name)
        if conversation is None:
            # Where a name does not fit into a header, its client was told the key.
            conversation = self._by_key.get(name.decode("latin-1"))
            if conversation is not None and conversation.tenant != tenant:
                return None
        return conversation

    def by_key(self, key: str) -> Conversation | None:
        """The conversation with this key, whoever it belongs to: for the router itself."""
        return self._by_key.get(key)

    def new(self, tenant: TenantId) -> Conversation:
        """A conversation nobody has seen yet, named by a label nobody can guess."""
        return self._add(tenant, b"auto-" + os.urandom(16).hex().encode())

    def continued(
        self, tenant: TenantId, trail: Trail | None
    ) -> tuple[Conversation, FiledAt | None]:
        """The conversation a history continues, and where it was filed; a new one if none does."""
        found = None if trail is None else self.history.take(trail)
        conversation = None if found is None else self._by_key.get(found[0])
        if found is None or conversation is None:
            return self.new(tenant), None
        conversation.filed_at = None
        return conversation, found[1]

    def restore(self, key: ConversationId, tenant: TenantId, name: bytes) -> Conversation:
        """A conversation of an earlier life or of another replica, whose key is known."""
        conversation = self._by_key[key] = Conversation(key, tenant, name)
        self._by_name.setdefault(tenant, {})[name] = conversation
        return conversation

    def _add(self, tenant: TenantId, name: bytes) -> Conversation:
        return self.restore(self.key_of(tenant, name), tenant, name)

    def refile(self, conversation: Conversation, at: FiledAt | None) -> None:
        """File a conversation under its new history, and no longer under the old one."""
        if conversation.filed_at is not None:
            self.history.unfile(conversation.key, conversation.filed_at)
        conversation.filed_at = at
        if at is not None:
            self.history.file(conversation.key, at)

    def forget_if_gone(self, conversation: Conversation) -> None:
        """Drop the entry unless a turn is open or the dispatcher holds the conversation."""
        if conversation.num_open_turns or self._is_live(conversation.key):
            return
        if self._by_key.pop(conversation.key, None) is None:
            return
        del self._by_name[conversation.tenant][conversation.name]
        self.refile(conversation, None)
        self.changed(conversation.key)

    def sweep(self, most: int) -> None:
        """Look at up to `most` entries, going round, and drop those that are gone.

        Conversations that never held KV end in the dispatcher without a command; this finds them.
        """
        if not self._by_key:
            return
        for _ in range(most):
            key = next(self._sweep, None)
            if key is None:
                self._sweep = iter(tuple(self._by_key))
                return
            conversation = self._by_key.get(key)
            if conversation is not None:
                self.forget_if_gone(conversation)


def _nothing(key: str) -> None:
    pass
