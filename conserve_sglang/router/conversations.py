"""The conversations the router knows by name, by key, or by their history.

A conversation's key is the router's own, random and opaque; it is what workers see. What a client
calls the conversation stays here. Entries go when the dispatcher has let go of the conversation.
"""

import os
import re
from collections.abc import Callable, Iterator

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.router.estimate import Counted
from conserve_sglang.router.history import FiledAt, HistoryIndex

MAX_NAME_BYTES = 256
_PRINTABLE = re.compile(rb"[!-~]+(?: [!-~]+)*\Z")


class Conversation:
    """One conversation: its key, what its client calls it, and where its history is filed."""

    __slots__ = (
        "counted",
        "filed_at",
        "header_line",
        "key",
        "name",
        "num_open_turns",
        "session_field",
    )

    def __init__(self, key: ConversationId, name: bytes | None) -> None:
        self.key = key
        self.name = name
        label = key.encode()
        if name is not None and _PRINTABLE.match(name):
            label = name
        self.header_line = b"x-conversation-id: " + label + b"\r\n"
        self.session_field = b'"session_id":"' + key.encode() + b'",'
        self.filed_at: FiledAt | None = None
        self.counted: Counted | None = None  # the last answered prompt, where it was text
        self.num_open_turns = 0


class ConversationTable:
    """All conversations. `is_live` asks the dispatcher whether it still holds one."""

    def __init__(self, is_live: Callable[[ConversationId], bool]) -> None:
        self._is_live = is_live
        self._by_key: dict[str, Conversation] = {}
        self._by_name: dict[bytes, Conversation] = {}
        self._sweep: Iterator[str] = iter(())
        self.history = HistoryIndex()

    def __len__(self) -> int:
        return len(self._by_key)

    def named(self, name: bytes) -> Conversation:
        """The conversation a client calls `name`; a new one if it is unknown."""
        conversation = self._by_name.get(name)
        if conversation is None:
            conversation = self._by_key.get(name.decode("latin-1"))  # we told it our own key
            if conversation is None:
                conversation = self.new(name)
                self._by_name[name] = conversation
        return conversation

    def find(self, name: bytes) -> Conversation | None:
        """The conversation by the client's name for it or by its key; None if unknown."""
        return self._by_name.get(name) or self._by_key.get(name.decode("latin-1"))

    def by_key(self, key: str) -> Conversation | None:
        """The conversation with this key."""
        return self._by_key.get(key)

    def new(self, name: bytes | None = None) -> Conversation:
        """A conversation nobody has seen yet."""
        key = ConversationId("conv-" + os.urandom(16).hex())
        conversation = self._by_key[key] = Conversation(key, name)
        return conversation

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
        if conversation.name is not None:
            self._by_name.pop(conversation.name, None)
        self.refile(conversation, None)

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
