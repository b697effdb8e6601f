"""What all readers share: numbered lines, bad ones collected, turns gathered to conversations."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite

import msgspec

from conserve_sglang.core.errors import NotThisFormat
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.workload import ConversationPlan, TurnPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that was left out, or a part of it: its number in the file (from 1), and why.

    `file` is its name when a folder was read.
    """

    number: int
    why: str
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A file's conversations in order of arrival, and the lines that are not among them.

    `num_lines` counts what could have been a bad line: `unit` says what, since in some formats a
    line holds many requests. `has_arrivals` and `has_gaps`: whether it tells when conversations
    arrive, and how long tools take; `about_gaps`: how its gaps differ from these, if they do.
    `not_read`: files of a folder that are in no format known, each with why.
    """

    conversations: tuple[ConversationPlan, ...]
    bad_lines: tuple[BadLine, ...]
    num_lines: int
    unit: str = "lines"
    has_arrivals: bool = True
    has_gaps: bool = True
    about_gaps: str = ""
    not_read: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line's text and number."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class RawTurn:
    """One turn as a file tells it, before its conversation is known whole."""

    conversation_id: str
    arrived_at_s: float
    turn: TurnPlan


MOST_TOKENS = 1_000_000_000
"""Of a turn. No model has such a context: a larger number is a mistake of the file."""


class Gathering:
    """Collects conversations and bad lines while a file is read. The options are `Trace`'s."""

    def __init__(
        self,
        unit: str = "lines",
        *,
        has_arrivals: bool = True,
        has_gaps: bool = True,
        about_gaps: str = "",
    ) -> None:
        self.bad_lines: list[BadLine] = []
        self.num_lines = 0
        self.has_arrivals, self.has_gaps = has_arrivals, has_gaps
        self._unit, self._about_gaps = unit, about_gaps
        self._plans: list[ConversationPlan] = []
        self._turns: dict[str, list[RawTurn]] = {}

    @contextmanager
    def line(self, number: int, part: str = "") -> Iterator[None]:
        """Take one line in, or a part of it that is named; it is bad if that fails."""
        self.num_lines += 1
        before = f"{part}: " if part else ""
        try:
            yield
        except KeyError as error:
            why = f"{before}no field {error.args[0]!r}"
            self.bad_lines.append(BadLine(number=number, why=why))
        except (ValueError, msgspec.MsgspecError) as error:
            self.bad_lines.append(BadLine(number=number, why=f"{before}{error}"))
        except (TypeError, AttributeError, RecursionError) as error:  # of values of another shape
            why = f"{before}not in this format: {error}"
            self.bad_lines.append(BadLine(number=number, why=why))

    def refuse(self, number: int, why: str) -> None:
        """A line none of which can be taken in."""
        self.num_lines += 1
        self.bad_lines.append(BadLine(number=number, why=why))

    def add_turn(self, turn: RawTurn) -> None:
        """A turn of a conversation whose turns stand on lines of their own. Raises ValueError for
        one that cannot be."""
        _check(turn.turn, turn.arrived_at_s)
        self._turns.setdefault(turn.conversation_id, []).append(turn)

    def add(self, plan: ConversationPlan) -> None:
        """A whole conversation. Raises ValueError for one that cannot be."""
        for turn in plan.turns:
            _check(turn, plan.arrived_at_s)
        self._plans.append(plan)

    def trace(self) -> Trace:
        """Everything, in order of arrival."""
        plans = [*self._plans, *(_conversation(turns) for turns in self._turns.values())]
        plans.sort(key=lambda plan: plan.arrived_at_s)
        bad = sorted(self.bad_lines, key=lambda line: line.number)
        return Trace(
            conversations=tuple(plans),
            bad_lines=tuple(bad),
            num_lines=self.num_lines,
            unit=self._unit,
            has_arrivals=self.has_arrivals,
            has_gaps=self.has_gaps,
            about_gaps=self._about_gaps,
        )

    def num_turns(self, conversation_id: str) -> int:
        """Turns of a conversation so far."""
        return len(self._turns.get(conversation_id, ()))

    def last(self, conversation_id: str) -> RawTurn | None:
        """The latest turn of a conversation."""
        turns = self._turns.get(conversation_id)
        return turns[-1] if turns else None


def _check(turn: TurnPlan, arrived_at_s: float) -> None:
    if not 0 <= arrived_at_s < inf:
        raise ValueError(f"arrives at {arrived_at_s:g} s; times begin at 0")
    if max(turn.input_tokens, turn.output_tokens) > MOST_TOKENS:
        raise ValueError(
            f"a turn of {turn.input_tokens:,} tokens of input and {turn.output_tokens:,} of output:"
            f" at most {MOST_TOKENS:,} can be"
        )


def _conversation(turns: Sequence[RawTurn]) -> ConversationPlan:
    return ConversationPlan(
        conversation_id=ConversationId(turns[0].conversation_id),
        turns=tuple(raw.turn for raw in turns),
        arrived_at_s=turns[0].arrived_at_s,
    )


def numbered(lines: Iterable[str]) -> Iterator[Line]:
    """Lines with their numbers, blank ones left out."""
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield Line(number, text)


def documents(lines: Iterable[Line]) -> list[Line]:
    """A file of JSON values: one a line, or a single one over many lines, as its first line."""
    given = list(lines)
    if len(given) > 1 and not is_json(given[0].text):
        whole = "\n".join(line.text for line in given)
        if is_json(whole):
            return [Line(given[0].number, whole)]
    return given


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def rows(
    lines: Iterable[Line], columns: Sequence[str], gathering: Gathering
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with its header; NotThisFormat if a column is missing. Lines that cannot
    be parted into cells, or have more of them than the header, are refused.

    Fields do not span lines, so that a row's number is its line's.
    """
    header: list[str] | None = None
    for line in lines:
        try:
            cells = next(csv.reader([line.text]))
        except csv.Error as error:
            gathering.refuse(line.number, str(error))
            continue
        if header is None:
            header = cells
            missing = [column for column in columns if column not in header]
            if missing:
                raise NotThisFormat(f"line {line.number}: no column {', '.join(missing)}")
            continue
        if len(cells) > len(header):
            gathering.refuse(line.number, f"{len(cells)} cells, and the header has {len(header)}")
            continue
        yield line.number, dict(zip(header, cells, strict=False))


def whole(row: dict[str, str], column: str) -> int:
    """A cell that must be a whole number."""
    text = row[column]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{column}: {text!r} is not a whole number") from None


def seconds(row: dict[str, str], column: str) -> float:
    """A cell that must be a finite number; an empty one is 0."""
    text = row[column]
    try:
        value = float(text) if text else 0.0
    except ValueError:
        raise ValueError(f"{column}: {text!r} is not a number") from None
    if not isfinite(value):
        raise ValueError(f"{column}: {text!r} is not a finite number")
    return value
