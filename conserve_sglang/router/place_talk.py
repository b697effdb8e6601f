"""What clients that place their turns say, as JSON; what they are told: `place_answer`.

Apart from that, which is compiled where it is asked for: msgspec makes objects of these classes.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from conserve_sglang.router.payload import Endpoint

ENDPOINTS = {
    "chat": Endpoint.CHAT,
    "completions": Endpoint.COMPLETION,
    "generate": Endpoint.GENERATE,
}
Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class _Counts(msgspec.Struct, kw_only=True):
    """What a client counted. Seconds are from when it asked for the turn's place;
    `has_called_tools` is whether the answer asks for tools rather than speaks to a user."""

    turn: str
    prompt_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    first_token_s: Seconds | None = None
    total_s: Seconds | None = None
    has_called_tools: bool | None = None


class Over(_Counts, kw_only=True):
    """What became of a turn that is over."""

    event: Literal["done", "abandoned"]


class Report(_Counts, kw_only=True):
    """What becomes of a turn."""

    event: Literal["first_token", "done", "failed", "abandoned"]
    cause: Literal[
        "prefix_missing",
        "append_too_large",
        "decoder_failed",
        "prefiller_failed",
        "decoder_busy",
        "prefiller_busy",
    ] = "decoder_failed"


class Ask(msgspec.Struct):
    """A turn to be placed, and what became of the `last` one."""

    input_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    conversation_id: str | None = None
    endpoint: Literal["chat", "completions", "generate"] = "chat"
    cache_salt: str | None = None
    extra_key: str | None = None
    last: Over | None = None


read_ask = msgspec.json.Decoder(Ask).decode
read_report = msgspec.json.Decoder(Report).decode
