"""Numbers in words, the same in every command."""

from math import isfinite
from typing import Any


def counted(number: int, what: str) -> str:
    """A count with its noun, in the plural unless it is one."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def finite(value: Any) -> Any:
    """Plain values for JSON, which knows no infinity: what never ends is null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
