"""The formats by name, and how a file's own is recognised."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO

import msgspec

from conserve_sglang.core.errors import NotThisFormat, TraceError
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
from conserve_sglang.traces.tokens import CountTokens, load_counter, tokenizer_file

STDIN = Path("-")
GZIP = b"\x1f\x8b"
"""What a file compressed with gzip begins with."""
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
    """Read a file of conversations (if compressed with gzip, it is unpacked), standard input if
    `path` is "-", or all files of a folder that are in a format known; the format is recognised if
    not given. `tokenizer` is a tokenizer.json, for formats with text instead of lengths.

    Raises TraceError when a file cannot be read, nothing is known of its format, or a tokenizer is
    needed and not given, or is not there.
    """
    if format_name is not None and format_name not in FORMATS:
        raise TraceError(f"format {format_name!r} is unknown; use one of {', '.join(FORMATS)}")
    if tokenizer is not None:
        tokenizer_file(tokenizer)
    if path.is_dir():
        return _read_folder(path, format_name, tokenizer)
    name = "standard input" if path == STDIN else str(path)
    try:
        with _text_of(path) as file:
            return _read(numbered(file), format_name, tokenizer)
    except NotThisFormat as error:
        raise NotThisFormat(f"{name}: {error}") from error
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two: gzip's
        why = getattr(error, "strerror", None) or error
        raise TraceError(f"{name}: cannot be read: {why}") from error


@contextmanager
def _text_of(path: Path) -> Iterator[IO[str]]:
    with ExitStack() as stack:
        file: int | Path = 0 if path == STDIN else path
        given = stack.enter_context(open(file, "rb", closefd=path != STDIN))
        is_packed = given.peek(len(GZIP)).startswith(GZIP)
        whole = stack.enter_context(gzip.open(given)) if is_packed else given
        yield TextIOWrapper(whole, encoding="utf-8-sig", errors="replace", newline=None)


def _read(lines: Iterable[Line], format_name: str | None, tokenizer: Path | None) -> Trace:
    lines = iter(lines)
    first = next(lines, None)
    if first is None:
        raise NotThisFormat("is empty")
    name = format_name or format_of(first.text)
    given: Iterable[Line] = chain([first], lines)
    if name is None and first.text.lstrip().startswith(("{", "[")):
        gathered = list(given)
        given, name = gathered, _format_of_all(gathered)
    if name is None:
        raise NotThisFormat(f"is in no format known here; they are {', '.join(FORMATS)}")
    if name in LENGTH_FORMATS:
        return LENGTH_FORMATS[name](given)
    if tokenizer is None:
        raise TraceError(
            f"holds text ({name}), and its tokens must be counted: give the tokenizer.json of the"
            " model with --tokenizer"
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
    traces: dict[Path, Trace] = {}
    not_read: list[str] = []
    for file in files:
        try:
            traces[file] = read_trace(file, format_name, tokenizer)
        except NotThisFormat as error:
            why = str(error).removeprefix(str(file)).partition(";")[0]
            not_read.append(f"{file.name}{why}")
    if not traces:
        raise TraceError(f"{folder}: no file in it can be read; {not_read[0]}")
    return replace(_together(traces), not_read=tuple(not_read))


def _together(traces: Mapping[Path, Trace]) -> Trace:
    stems = Counter(file.stem for file in traces)
    names = {file: file.stem if stems[file.stem] == 1 else file.name for file in traces}
    plans = [
        replace(plan, conversation_id=ConversationId(f"{names[file]}/{plan.conversation_id}"))
        for file, trace in traces.items()
        for plan in trace.conversations
    ]
    plans.sort(key=lambda plan: plan.arrived_at_s)
    every = list(traces.values())
    return Trace(
        conversations=tuple(plans),
        bad_lines=tuple(
            replace(bad, file=file.name)
            for file, trace in traces.items()
            for bad in trace.bad_lines
        ),
        num_lines=sum(trace.num_lines for trace in every),
        unit=every[0].unit,
        has_arrivals=any(trace.has_arrivals for trace in every),
        has_gaps=any(trace.has_gaps for trace in every),
        about_gaps=next((trace.about_gaps for trace in every if trace.about_gaps), ""),
    )
