"""The rule of every fault: a turn is answered once and whole. A breach fails for good."""

from collections.abc import Iterator
from contextlib import contextmanager


class BrokenRule(AssertionError):
    """A turn was lost, cut, repeated or answered otherwise; playing it again must not hide that."""


@contextmanager
def answered_once() -> Iterator[None]:
    """Around turns that met a fault: whatever is wrong with them is raised as `BrokenRule`."""
    try:
        yield
    except Exception as error:
        raise BrokenRule(f"{type(error).__name__}: {error}") from error
