"""Finds the conversation a request continues, by the history it brings along.

After each answered turn the conversation is filed under its history: the messages (or the
prompt) plus the answer given. A request whose history begins with one filed continues that
conversation; the longest wins. Two clients with one opening *and* one answer are, to a server,
interchangeable: either is taken, and leaves the file until its next turn is answered.

Hashes are keyed with the router's secret and 128 bits long, so no client can aim at another's
history. They begin with the tenant: what one tenant filed, another's request cannot find.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from conserve_sglang.core.ids import TenantId

BLOCK_BYTES = 1024


@dataclass(frozen=True, slots=True)
class FiledAt:
    """Where a conversation is filed; `block` and `num_bytes` are set for prompts."""

    digest: bytes
    block: bytes | None = None
    num_bytes: int = 0


class HistoryIndex:
    """Histories of the conversations at rest, each to the conversations that ended there."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._ends: dict[bytes, list[str]] = {}
        self._lengths: dict[bytes, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def file(self, conversation: str, at: FiledAt) -> None:
        """File a conversation under a history."""
        self._ends.setdefault(at.digest, []).append(conversation)
        if at.block is not None:
            lengths = self._lengths.setdefault(at.block, {})
            lengths[at.num_bytes] = lengths.get(at.num_bytes, 0) + 1

    def unfile(self, conversation: str, at: FiledAt) -> None:
        """Take a conversation out, if it is still there."""
        stack = self._ends.get(at.digest)
        if stack is not None and conversation in stack:
            stack.remove(conversation)
            self._clear(at)

    def _take(self, at: FiledAt) -> str | None:
        stack = self._ends.get(at.digest)
        if not stack:
            return None
        conversation = stack.pop()
        self._clear(at)
        return conversation

    def _clear(self, at: FiledAt) -> None:
        if not self._ends[at.digest]:
            del self._ends[at.digest]
        if at.block is not None:
            lengths = self._lengths[at.block]
            lengths[at.num_bytes] -= 1
            if not lengths[at.num_bytes]:
                del lengths[at.num_bytes]
            if not lengths:
                del self._lengths[at.block]

    # chat: a chain with one link per message

    def end_of_messages(self, tenant: TenantId, messages: list[bytes]) -> FiledAt:
        """Where a history of canonical messages is filed."""
        *_, digest = self._chain(tenant, messages)
        return FiledAt(digest)

    def take_by_messages(
        self, tenant: TenantId, messages: list[bytes]
    ) -> tuple[str, FiledAt] | None:
        """The tenant's conversation that the longest known beginning of `messages` belongs to."""
        if not self._ends:
            return None
        for digest in reversed(list(self._chain(tenant, messages))):
            at = FiledAt(digest)
            conversation = self._take(at)
            if conversation is not None:
                return conversation, at
        return None

    def _chain(self, tenant: TenantId, messages: list[bytes]) -> Iterator[bytes]:
        state = self._hash(tenant, b"chat")
        for message in messages:
            state.update(b"%d:" % len(message))
            state.update(message)
            yield state.copy().digest()

    # prompts: a chain with one link per block, and the exact end beside the last link

    def end_of_prompt(self, tenant: TenantId, kind: bytes, prompt: bytes) -> FiledAt:
        """Where a prompt with its answer is filed. `kind` tells text from token ids."""
        *_, (block, state) = self._blocks(tenant, kind, prompt)
        state.update(prompt[len(prompt) - len(prompt) % BLOCK_BYTES :])
        return FiledAt(state.digest(), block, len(prompt))

    def take_by_prompt(
        self, tenant: TenantId, kind: bytes, prompt: bytes
    ) -> tuple[str, FiledAt] | None:
        """The tenant's conversation whose prompt and answer `prompt` begins with; longest wins."""
        if not self._lengths:
            return None
        links = list(self._blocks(tenant, kind, prompt))
        for number, (block, state) in reversed(list(enumerate(links))):
            for num_bytes in sorted(self._lengths.get(block, ()), reverse=True):
                if num_bytes > len(prompt):
                    continue
                end = state.copy()
                end.update(prompt[number * BLOCK_BYTES : num_bytes])
                at = FiledAt(end.digest(), block, num_bytes)
                conversation = self._take(at)
                if conversation is not None:
                    return conversation, at
        return None

    def _blocks(
        self, tenant: TenantId, kind: bytes, prompt: bytes
    ) -> Iterator[tuple[bytes, blake2b]]:
        """For 0, 1, 2... whole blocks: their name, and the hash state behind them."""
        state = self._hash(tenant, kind)
        for start in range(0, len(prompt) + 1, BLOCK_BYTES):
            yield b"block" + state.copy().digest(), state.copy()
            state.update(prompt[start : start + BLOCK_BYTES])

    def _hash(self, tenant: TenantId, kind: bytes) -> blake2b:
        """The start of a chain; neither a tenant's name nor a kind has a zero byte."""
        start = b"%b\0%b\0" % (tenant.encode(), kind)
        return blake2b(start, digest_size=16, key=self._secret, person=b"history")
