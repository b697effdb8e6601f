"""Prompt length from bytes, by the ratio observed between the two.

It places a turn and never refuses one; the worker's own count follows with the answer. From a
conversation's second turn on, only what was added since the last count is derived, so that the
ratio's error does not grow with the conversation.
"""

from dataclasses import dataclass

START_BYTES_PER_TOKEN = 4.0
_WEIGHT = 0.05


@dataclass(slots=True)
class Counted:
    """A prompt whose tokens a worker has counted."""

    num_bytes: int
    num_tokens: int


class LengthEstimate:
    """A running ratio of bytes to tokens, over everything one model has been asked."""

    __slots__ = ("bytes_per_token",)

    def __init__(self) -> None:
        self.bytes_per_token = START_BYTES_PER_TOKEN

    def tokens(self, num_bytes: int) -> int:
        """How many tokens so many bytes are, at least one."""
        return max(1, int(num_bytes / self.bytes_per_token))

    def tokens_after(self, num_bytes: int, last: Counted) -> int:
        """How many tokens a prompt is that continues one already counted.

        The last answer is part of the bytes added. A prompt that became shorter was cut by its
        client, and keeps its own ratio.
        """
        added_bytes = num_bytes - last.num_bytes
        if added_bytes < 0:
            return max(1, num_bytes * last.num_tokens // last.num_bytes)
        return max(1, last.num_tokens + int(added_bytes / self.bytes_per_token))

    def learn(self, num_bytes: int, num_tokens: int) -> None:
        """Take in one observed pair."""
        if num_bytes > 0 and num_tokens > 0:
            ratio = num_bytes / num_tokens
            self.bytes_per_token += _WEIGHT * (ratio - self.bytes_per_token)
