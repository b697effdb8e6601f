"""The formats by name, and how a file's own is recognised."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path

from conserve_sglang.core.errors import TraceError
from conserve_sglang.traces.own import read_own
from conserve_sglang.traces.public import (
    AZURE_COLUMNS,
    CLAUDE_CODE_COLUMNS,
    CONSERVE_COLUMNS,
    read_azure,
    read_claude_code,
    read_conserve_lengths,
    read_mooncake,
)
from conserve_sglang.traces.reading import Line, Trace, numbered

Reader = Callable[[Iterable[Line]], Trace]

FORMATS: Mapping[str, Reader] = {
    "conversations": read_own,
    "conserve-lengths": read_conserve_lengths,
    "claude-code": read_claude_code,
    "mooncake": read_mooncake,
    "azure": read_azure,
}

_COLUMNS = {
    "conserve-lengths": CONSERVE_COLUMNS,
    "claude-code": CLAUDE_CODE_COLUMNS,
    "azure": AZURE_COLUMNS,
}


def format_of(first_line: str) -> str | None:
    """The format a file's first line tells; None for none of ours."""
    text = first_line.strip()
    if text.startswith("{"):
        return "mooncake" if '"hash_ids"' in text else "conversations"
    header = set(text.split(","))
    for name, columns in _COLUMNS.items():
        if header.issuperset(columns):
            return name
    return None


def read_trace(path: Path, format_name: str | None = None) -> Trace:
    """Read a file of conversations; its format is recognised if not given.

    Raises TraceError when the file cannot be read or nothing is known of its format.
    """
    if format_name is not None and format_name not in FORMATS:
        raise TraceError(f"format {format_name!r} is unknown; use one of {', '.join(FORMATS)}")
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline=None) as file:
            lines = numbered(file)
            first = next(lines, None)
            if first is None:
                raise TraceError(f"{path}: is empty")
            name = format_name or format_of(first.text)
            if name is None:
                raise TraceError(
                    f"{path}: is in no format known here; they are {', '.join(FORMATS)}"
                )
            return FORMATS[name](chain([first], lines))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
