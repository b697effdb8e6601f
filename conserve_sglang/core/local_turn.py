"""What the router tells a decoder about a local turn, and how the decoder refuses one.

A local turn is a tail turn sent to its pinned decoder alone. The router marks it explicitly, so
that a request which merely lost its bootstrap fields is never prefilled by accident. The mark
rides in SGLang's `routing_key` (header `x-smg-routing-key` on the OpenAI endpoints, body field
`routing_key` on `/generate`); it carries the two limits the decoder must check before it
prefills. A refusal comes back as an error whose message starts with `REFUSAL_PREFIX`.
"""

import re
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.turn_tag import TAG_SUFFIX

MARK = "conserve-local"
REFUSAL_PREFIX = "conserve-refused"
REFUSAL_STATUS = 409

_MARK_PATTERN = re.compile(rf"^{MARK} max_uncached=(\d{{1,9}}) min_cached=(\d{{1,9}}){TAG_SUFFIX}$")
_REFUSAL_PATTERN = re.compile(rf"{REFUSAL_PREFIX} reason=([a-z_]+) cached=(\d+) uncached=(\d+)")


class RefusalReason(Enum):
    """Why a decoder did not take a local turn."""

    PREFIX_MISSING = "prefix_missing"
    APPEND_TOO_LARGE = "append_too_large"


@dataclass(slots=True)
class LocalLimits:
    """Limits of one local turn, both in tokens. Made once a turn, so frozen by agreement only.

    `max_uncached`: most tokens the decoder may prefill itself.
    `min_cached`: fewest tokens of the prompt that must still be resident; fewer means the
    conversation's prefix is gone.
    """

    max_uncached: int
    min_cached: int

    def to_routing_key(self) -> str:
        """The mark as it travels in `routing_key`."""
        return f"{MARK} max_uncached={self.max_uncached} min_cached={self.min_cached}"

    @classmethod
    def from_routing_key(cls, value: str | None) -> "LocalLimits | None":
        """Read a mark; None when `value` is not one."""
        match = _MARK_PATTERN.match(value) if value else None
        if match is None:
            return None
        return cls(max_uncached=int(match[1]), min_cached=int(match[2]))

    def refusal(self, *, prompt_tokens: int, cached_tokens: int) -> "Refusal | None":
        """The refusal due for a prompt of which `cached_tokens` are resident, or None."""
        uncached = prompt_tokens - cached_tokens
        if cached_tokens < self.min_cached:
            reason = RefusalReason.PREFIX_MISSING
        elif uncached > self.max_uncached:
            reason = RefusalReason.APPEND_TOO_LARGE
        else:
            return None
        return Refusal(reason=reason, cached_tokens=cached_tokens, uncached_tokens=uncached)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A decoder's answer to a local turn it will not prefill itself."""

    reason: RefusalReason
    cached_tokens: int
    uncached_tokens: int

    def to_message(self) -> str:
        """The error message that carries this refusal to the router."""
        return (
            f"{REFUSAL_PREFIX} reason={self.reason.value}"
            f" cached={self.cached_tokens} uncached={self.uncached_tokens}"
        )

    @classmethod
    def from_message(cls, text: str) -> "Refusal | None":
        """Find a refusal in an error body; None when there is none."""
        match = _REFUSAL_PATTERN.search(text)
        if match is None:
            return None
        try:
            reason = RefusalReason(match[1])
        except ValueError:
            return None
        return cls(reason=reason, cached_tokens=int(match[2]), uncached_tokens=int(match[3]))
