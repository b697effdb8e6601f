"""What a fake worker has computed, as far as another prompt can begin with it: SGLang's radix tree.

Prefixes under different `extra_key` and `cache_salt` are different ones, whoever sends them.
"""

from collections import deque
from typing import Any

Salt = tuple[str | None, str | None]
_MOST = 256


def salt_of(body: dict[str, Any]) -> Salt:
    """What keeps a request's prefix apart; an empty value is none."""
    return body.get("extra_key") or None, body.get("cache_salt") or None


def common(held: str, prompt: str) -> int:
    """Tokens two prompts begin with, one a character."""
    pairs = enumerate(zip(held, prompt, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(held), len(prompt)))


class Prefixes:
    """The latest prompts of a worker, with their answers, each under its salt."""

    def __init__(self) -> None:
        self._held: deque[tuple[Salt, str]] = deque(maxlen=_MOST)

    def add(self, body: dict[str, Any], text: str) -> None:
        self._held.append((salt_of(body), text))

    def cached(self, body: dict[str, Any], prompt: str) -> int:
        """Tokens of the prompt that are there already."""
        salt = salt_of(body)
        return max((common(text, prompt) for each, text in self._held if each == salt), default=0)

    def clear(self) -> None:
        self._held.clear()
