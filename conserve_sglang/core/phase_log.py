"""The phase log: what a worker's scheduler did when, and for which turns.

The plugin appends to it, the agent reads it. One JSON array a line; times are seconds of the host's
monotonic clock, which all of its processes share. There is no text of any prompt in it.

    ["o", 1, pid, at_s, number]                 a new file, the `number`th of this process
    ["b", at_s]                                 an extend batch was launched
    ["x", start_s, end_s, [work, ...]]          it is over
    ["d", start_s, end_s, steps, [work, ...]]   decode steps one right after the other

`work` is `[conversation, turn, phase, new_tokens, held_tokens]`: tokens computed, and for a
prefill those cached before it, for decode the mean length of the request's context over the steps.
A batch begins when the one before it ended, if it was launched earlier: what overlaps on the host
does not on the device.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

VERSION = 1


class Phase(Enum):
    """What a worker does for a turn; the value stands in metrics."""

    PREFILL = "prefill"
    APPEND_PREFILL = "append_prefill"
    DECODE = "decode"


IDLE = "idle"
"""Not a phase of any turn: what a device draws while none of its workers runs a batch."""

_CODES = {Phase.PREFILL: "p", Phase.APPEND_PREFILL: "a", Phase.DECODE: "d"}
_PHASES = {code: phase for phase, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Work:
    """One request's part of a batch; `conversation` is None if the request says no turn."""

    conversation: str | None
    turn: int
    phase: Phase
    new_tokens: int
    held_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One extend batch, or a run of decode steps."""

    start_s: float
    end_s: float
    steps: int
    works: tuple[Work, ...]

    @property
    def is_decode(self) -> bool:
        """Whether it is a run of decode steps."""
        return bool(self.works) and self.works[0].phase is Phase.DECODE


@dataclass(frozen=True, slots=True)
class Launched:
    """An extend batch under way since `at_s`."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The beginning of a file."""

    pid: int
    at_s: float
    number: int


Entry = Batch | Launched | Opened


def encode_opened(pid: int, at_s: float, number: int) -> bytes:
    """The first line of a file."""
    return _line(["o", VERSION, pid, at_s, number])


def encode_launched(at_s: float) -> bytes:
    """Before an extend batch."""
    return b'["b",%.6f]\n' % at_s


def encode_extend(start_s: float, end_s: float, works: Sequence[Sequence[Any]]) -> bytes:
    """After an extend batch; a work as `encode_work` makes it."""
    return _line(["x", round(start_s, 6), round(end_s, 6), works])


def encode_decode(
    start_s: float, end_s: float, steps: int, works: Sequence[Sequence[Any]]
) -> bytes:
    """After a run of decode steps."""
    return _line(["d", round(start_s, 6), round(end_s, 6), steps, works])


def encode_work(
    tag: tuple[str, int] | None, phase: Phase, new_tokens: int, held_tokens: int
) -> list[Any]:
    """One request's part."""
    conversation, turn = (None, 0) if tag is None else tag
    return [conversation, turn, _CODES[phase], new_tokens, held_tokens]


def decode_line(line: bytes) -> Entry | None:
    """Read one line; None for one of a newer kind. Raises ValueError for one that is damaged."""
    try:
        kind, *rest = json.loads(line)
        if kind == "d":
            start_s, end_s, steps, works = rest
            return Batch(float(start_s), float(end_s), int(steps), _works(works))
        if kind == "x":
            start_s, end_s, works = rest
            return Batch(float(start_s), float(end_s), 1, _works(works))
        if kind == "b":
            return Launched(float(rest[0]))
        if kind == "o":
            version, pid, at_s, number = rest
            if version != VERSION:
                raise ValueError(f"phase log of version {version}, this reads {VERSION}")
            return Opened(int(pid), float(at_s), int(number))
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not a line of a phase log: {line[:80]!r}") from error
    return None


def _works(rows: Sequence[Sequence[Any]]) -> tuple[Work, ...]:
    return tuple(
        Work(conversation, int(turn), _PHASES[code], int(new), int(held))
        for conversation, turn, code, new, held in rows
    )


def _line(values: list[Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
