"""The formats by name, and how a file's own is recognised."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

import msgspec

from conserve_sglang.core.errors import TraceError
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.traces.claude_sessions import read_claude_sessions
from conserve_sglang.traces.messages import read_messages, read_swe_agent
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
from conserve_sglang.traces.reading import Line, Trace, is_json, numbered
from conserve_sglang.traces.tokens import CountTokens, load_counter

Reader = Callable[[Iterable[Line]], Trace]
TextReader = Callable[[Iterable[Line], CountTokens], Trace]

LENGTH_FORMATS: Mapping[str, Reader] = {
    "conversations": read_own,
    "conserve-lengths": read_conserve_lengths,
    "claude-code": read_claude_code,
    "claude-code-sessions": read_claude_sessions,
    "mooncake": read_mooncake,
    "azure": read_azure,
}
TEXT_FORMATS: Mapping[str, TextReader] = {
    "messages": read_messages,
    "swe-agent": read_swe_agent,
}
FORMATS = (*LENGTH_FORMATS, *TEXT_FORMATS)

_COLUMNS = {
    "conserve-lengths": CONSERVE_COLUMNS,
    "claude-code": CLAUDE_CODE_COLUMNS,
    "azure": AZURE_COLUMNS,
}
_FIELDS = {  # of a JSON object, in the order they are looked for
    "claude-code-sessions": {"requests", "block_size"},
    "mooncake": {"hash_ids", "timestamp"},
    "swe-agent": {"trajectory"},
    "messages": {"messages"},
    "conversations": {"turns"},
}


def format_of(text: str) -> str | None:
    """The format that a file's first line tells, or its whole text where that is one JSON value
    over many lines; None for none of ours."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        header = set(text.strip().split(","))
        named = (name for name, columns in _COLUMNS.items() if header.issuperset(columns))
        return next(named, None)
    if isinstance(value, list):
        is_messages = bool(value) and isinstance(value[0], dict) and "role" in value[0]
        return "messages" if is_messages else None
    if not isinstance(value, dict):
        return None
    return next((name for name, fields in _FIELDS.items() if fields <= value.keys()), None)


def read_trace(path: Path, format_name: str | None = None, tokenizer: Path | None = None) -> Trace:
    """Read a file of conversations (one whose name ends in .gz is unpacked), or all files of a
    folder; the format is recognised if not given. `tokenizer` is a tokenizer.json, for formats with
    text instead of lengths.

    Raises TraceError when a file cannot be read, nothing is known of its format, or a tokenizer is
    needed and not given.
    """
    if format_name is not None and format_name not in FORMATS:
        raise TraceError(f"format {format_name!r} is unknown; use one of {', '.join(FORMATS)}")
    if path.is_dir():
        return _read_folder(path, format_name, tokenizer)
    try:
        with _text_of(path) as file:
            return _read(path, numbered(file), format_name, tokenizer)
    except (OSError, EOFError, zlib.error) as error:  # the last two: gzip's
        why = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: cannot be read: {why}") from error


def _text_of(path: Path) -> IO[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", errors="replace", newline=None)


def _read(
    path: Path, lines: Iterable[Line], format_name: str | None, tokenizer: Path | None
) -> Trace:
    lines = iter(lines)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path}: is empty")
    name = format_name or format_of(first.text)
    given: Iterable[Line] = chain([first], lines)
    if name is None and first.text.lstrip().startswith(("{", "[")):
        gathered = list(given)
        given, name = gathered, _format_of_all(gathered)
    if name is None:
        raise TraceError(f"{path}: is in no format known here; they are {', '.join(FORMATS)}")
    if name in LENGTH_FORMATS:
        return LENGTH_FORMATS[name](given)
    if tokenizer is None:
        raise TraceError(
            f"{path}: holds text ({name}), and its tokens must be counted: give the tokenizer.json"
            " of the model with --tokenizer"
        )
    return TEXT_FORMATS[name](given, load_counter(tokenizer))


def _format_of_all(lines: list[Line]) -> str | None:
    """The format of a JSON value over many lines; of lines, that of the first one that tells."""
    whole = "\n".join(line.text for line in lines)
    if is_json(whole):
        return format_of(whole)
    return next((name for line in lines if (name := format_of(line.text)) is not None), None)


def _read_folder(folder: Path, format_name: str | None, tokenizer: Path | None) -> Trace:
    """All files in it but hidden ones; conversations are named after their file too."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    if not files:
        raise TraceError(f"{folder}: has no file in it")
    traces = {file: read_trace(file, format_name, tokenizer) for file in files}
    stems = Counter(file.stem for file in files)
    names = {file: file.stem if stems[file.stem] == 1 else file.name for file in files}
    plans = [
        replace(plan, conversation_id=ConversationId(f"{names[file]}/{plan.conversation_id}"))
        for file, trace in traces.items()
        for plan in trace.conversations
    ]
    plans.sort(key=lambda plan: plan.arrived_at_s)
    return Trace(
        conversations=tuple(plans),
        bad_lines=tuple(
            replace(bad, file=file.name)
            for file, trace in traces.items()
            for bad in trace.bad_lines
        ),
        num_lines=sum(trace.num_lines for trace in traces.values()),
        unit=traces[files[0]].unit,
    )
