"""One conversation, and one response, as they are stored."""

from typing import NamedTuple


class SavedConversation(NamedTuple):
    """What a router has to know to go on with a conversation. A plain row, as stores want it.

    `worker` with `incarnation` is the pin; None: no pin. `filed_at` is the digest of its history,
    with `filed_block` and `filed_bytes` where that is a prompt. `counted_*` is the last prompt of
    text whose tokens were counted. Times are seconds since the epoch, since the next reader has
    another monotonic clock.
    """

    key: str
    tenant: str
    name: bytes
    worker: str | None
    incarnation: str | None
    resident_tokens: int
    prompt_tokens: int
    num_turns: int
    num_kv_transfers: int
    last_active_at_wall: float
    filed_at: bytes | None = None
    filed_block: bytes | None = None
    filed_bytes: int = 0
    counted_bytes: int | None = None
    counted_tokens: int | None = None


class SavedResponse(NamedTuple):
    """A response that a client may go on from: chat messages as JSON, with commas between them,
    the response before it, and the response object as JSON, b"" where that is not kept."""

    tenant: str
    response_id: str
    previous: str | None
    messages: bytes
    response: bytes = b""
