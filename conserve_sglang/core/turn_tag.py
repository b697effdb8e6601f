"""Which turn a worker's request belongs to, where that is told: behind what `routing_key` holds.

    conserve-local max_uncached=512 min_cached=90 of=conv-1f...:3     a local turn
    conserve-turn of=conv-1f...:1                                      any other

Told only where energy is read: the phase log says which turn each batch worked for.
"""

import re

_MARK = "conserve-turn"
_PATTERN = re.compile(r" of=([!-~]+):(\d{1,9})$")

TAG_SUFFIX = r"(?: of=[!-~]+:\d{1,9})?"
"""What may follow any other mark, as a regular expression."""


def tagged(routing_key: str | None, conversation: str, turn: int) -> str:
    """A routing key that says whose turn it is, too; `turn` counts from 1."""
    return f"{routing_key or _MARK} of={conversation}:{turn}"


def tag_of(routing_key: str | None) -> tuple[str, int] | None:
    """The conversation's key and the turn's number; None if none is told."""
    match = _PATTERN.search(routing_key) if routing_key else None
    return None if match is None else (match[1], int(match[2]))


def with_tag_of(routing_key: str, other: str | None) -> str:
    """A routing key with the tag that another one carries, if it carries one."""
    tag = tag_of(other)
    return routing_key if tag is None else tagged(routing_key, *tag)
