"""Finds the conversation a request continues, by the history it brings along.

After each answered turn the conversation is filed under its history: the messages (or the
prompt) plus the answer given. A request whose history begins with one filed continues that
conversation; the longest wins. Two clients with one opening *and* one answer are, to a server,
interchangeable: either is taken, and leaves the file until its next turn is answered.

Hashes begin with the router's secret, in a block of its own, and are cut to 128 bits and told
nobody, so no client can aim at another's history. The tenant comes next: what one tenant filed,
another's request cannot find. A history is hashed once: its trail goes on with the answer.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from conserve_sglang.core.ids import TenantId

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK_BYTES = 1024
_DIGEST_BYTES = 16
_SECRET_BYTES = 64  # one block of the hash


@dataclass(slots=True)
class FiledAt:
    """Where a conversation is filed; `block` and `num_bytes` are set for prompts."""

    digest: bytes
    block: bytes | None = None
    num_bytes: int = 0


class Digests:
    """A chat's history, hashed: a chain with one digest per message."""

    __slots__ = ("digests",)

    def __init__(self, digests: list[bytes]) -> None:
        self.digests = digests


class ChatTrail(Digests):
    """The digests of a chat, and the hash state behind them."""

    __slots__ = ("_state",)

    def __init__(self, state: "_Hash", messages: list[bytes]) -> None:
        super().__init__([])
        self._state = state
        for message in messages:
            self._add(message)

    def _add(self, message: bytes) -> None:
        state = self._state
        state.update(b"%d:" % len(message))
        state.update(message)  # by itself: it may be long, and would be copied
        self.digests.append(state.digest()[:_DIGEST_BYTES])

    def end(self, answer: bytes) -> FiledAt:
        """Where the history is filed once `answer` belongs to it. To be asked once."""
        self._add(answer)
        return FiledAt(self.digests[-1])


class PromptTrail:
    """A prompt, hashed: a chain with one link per block, each with the hash state behind it."""

    __slots__ = ("links", "prompt")

    def __init__(self, state: "_Hash", prompt: bytes) -> None:
        self.prompt = prompt
        self.links = list(_blocks(state, prompt))

    def end(self, said: bytes) -> FiledAt:
        """Where prompt and answer are filed; the exact end stands beside the last link."""
        data = self.prompt[(len(self.links) - 1) * BLOCK_BYTES :] + said
        *_, (block, state) = _blocks(self.links[-1][1], data)
        state.update(data[len(data) - len(data) % BLOCK_BYTES :])
        digest = state.digest()[:_DIGEST_BYTES]
        return FiledAt(digest, block, len(self.prompt) + len(said))

    def beginning(self, number: int, num_bytes: int) -> bytes:
        """The digest of the first `num_bytes`, of which `number` blocks are whole."""
        end = self.links[number][1].copy()
        end.update(self.prompt[number * BLOCK_BYTES : num_bytes])
        return end.digest()[:_DIGEST_BYTES]


Trail = Digests | PromptTrail


def _blocks(state: "_Hash", data: bytes) -> Iterator[tuple[bytes, "_Hash"]]:
    """For 0, 1, 2... whole blocks: their name, and the hash state behind them."""
    state = state.copy()
    for start in range(0, len(data) + 1, BLOCK_BYTES):
        yield b"block" + state.digest()[:_DIGEST_BYTES], state.copy()
        state.update(data[start : start + BLOCK_BYTES])


class HistoryHash:
    """Hashes histories with the router's secret, of up to 64 bytes."""

    __slots__ = ("_secret", "_starts")

    def __init__(self, secret: bytes) -> None:
        self._secret = sha256(secret.ljust(_SECRET_BYTES, b"\0"))
        self._starts: dict[tuple[TenantId, bytes], _Hash] = {}

    def chat(self, tenant: TenantId, messages: list[bytes]) -> ChatTrail:
        """The trail of canonical messages."""
        return ChatTrail(self._start(tenant, b"chat"), messages)

    def prompt(self, tenant: TenantId, kind: bytes, prompt: bytes) -> PromptTrail:
        """The trail of a prompt. `kind` tells text from token ids."""
        return PromptTrail(self._start(tenant, kind), prompt)

    def _start(self, tenant: TenantId, kind: bytes) -> "_Hash":
        """The start of a chain; neither a tenant's name nor a kind has a zero byte."""
        start = self._starts.get((tenant, kind))
        if start is None:
            start = self._starts[tenant, kind] = self._secret.copy()
            start.update(b"%b\0%b\0" % (tenant.encode(), kind))
        return start.copy()


def beginnings(trail: Trail, lengths: Callable[[bytes], Iterable[int]]) -> Iterator[FiledAt]:
    """Where a conversation may be filed that this trail goes on with, the longest first.

    `lengths` tells of a block after how many bytes prompts ended behind it.
    """
    if isinstance(trail, PromptTrail):
        for number, (block, _) in reversed(list(enumerate(trail.links))):
            for num_bytes in sorted(lengths(block), reverse=True):
                if num_bytes <= len(trail.prompt):
                    yield FiledAt(trail.beginning(number, num_bytes), block, num_bytes)
    else:
        for digest in reversed(trail.digests):
            yield FiledAt(digest)


class HistoryIndex:
    """Histories of the conversations at rest, each to the conversations that ended there."""

    def __init__(self) -> None:
        self._ends: dict[bytes, str | list[str]] = {}  # as a rule there is one
        self._lengths: dict[bytes, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def file(self, conversation: str, at: FiledAt) -> None:
        """File a conversation under a history."""
        others = self._ends.get(at.digest)
        if others is None:
            self._ends[at.digest] = conversation
        elif isinstance(others, list):
            others.append(conversation)
        else:
            self._ends[at.digest] = [others, conversation]
        if at.block is not None:
            lengths = self._lengths.setdefault(at.block, {})
            lengths[at.num_bytes] = lengths.get(at.num_bytes, 0) + 1

    def unfile(self, conversation: str, at: FiledAt) -> None:
        """Take a conversation out, if it is still there."""
        stack = self._ends.get(at.digest)
        if isinstance(stack, list):
            if conversation in stack:
                stack.remove(conversation)
                self._clear(at)
        elif stack is not None and stack == conversation:
            self._clear(at)

    def take(self, trail: Trail) -> tuple[str, FiledAt] | None:
        """The conversation that the longest known beginning of a trail belongs to."""
        if isinstance(trail, PromptTrail) and not self._lengths:
            return None
        for at in beginnings(trail, lambda block: self._lengths.get(block, ())):
            if at.digest in self._ends:
                return self._take(at), at
        return None

    def _take(self, at: FiledAt) -> str:
        stack = self._ends[at.digest]
        conversation = stack.pop() if isinstance(stack, list) else stack
        self._clear(at)
        return conversation

    def _clear(self, at: FiledAt) -> None:
        """One that was filed there is no more."""
        stack = self._ends[at.digest]
        if not isinstance(stack, list) or not stack:
            del self._ends[at.digest]
        if at.block is not None:
            lengths = self._lengths[at.block]
            lengths[at.num_bytes] -= 1
            if not lengths[at.num_bytes]:
                del lengths[at.num_bytes]
            if not lengths:
                del self._lengths[at.block]
