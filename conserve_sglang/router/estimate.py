"""Prompt length from bytes, by the ratio observed between the two.

It places a turn and never refuses one; the worker's own count follows with the answer.
"""

START_BYTES_PER_TOKEN = 4.0
_WEIGHT = 0.05


class LengthEstimate:
    """A running ratio of bytes to tokens, over everything one model has been asked."""

    __slots__ = ("bytes_per_token",)

    def __init__(self) -> None:
        self.bytes_per_token = START_BYTES_PER_TOKEN

    def tokens(self, num_bytes: int) -> int:
        """How many tokens so many bytes are, at least one."""
        return max(1, int(num_bytes / self.bytes_per_token))

    def learn(self, num_bytes: int, num_tokens: int) -> None:
        """Take in one observed pair."""
        if num_bytes > 0 and num_tokens > 0:
            ratio = num_bytes / num_tokens
            self.bytes_per_token += _WEIGHT * (ratio - self.bytes_per_token)
