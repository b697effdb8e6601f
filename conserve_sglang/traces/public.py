"""Public traces. Each function says what it takes from the file, and what it has to assume."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timezone

import msgspec

from conserve_sglang.traces.reading import Gathering, Line, RawTurn, Trace, rows, seconds, whole
from conserve_sglang.workload import TurnPlan

CONSERVE_COLUMNS = ("conv_id", "iter_id", "total_input", "out_token_size", "carried_over")
CLAUDE_CODE_COLUMNS = (
    "trace_id", "agent", "t_s", "in_tokens", "out_tokens", "cached_prefix_tokens_prev_turn",
    "api_time_s",
)  # fmt: skip
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BLOCK_TOKENS = 512
FROM_ARRIVALS = (
    "from arrival to arrival, too long by the time that the turn before was served, which the file"
    " does not tell"
)
_TOO_FINE = re.compile(r"(\.\d{6})\d+")  # seven decimals are one too many

Row = dict[str, str]


def read_conserve_lengths(lines: Iterable[Line]) -> Trace:
    """The lengths of arXiv 2606.01839's workload. There are no times: all arrive at 0, without
    tool gaps. A turn whose predecessor is missing or bad is bad too."""

    def take(gathering: Gathering, number: int, row: Row) -> None:
        name, index = row["conv_id"], whole(row, "iter_id")
        expected, last = gathering.num_turns(name), gathering.last(name)
        if index != expected:
            raise ValueError(f"iter_id: {index} of conversation {name} where {expected} was due")
        turn = TurnPlan(
            input_tokens=whole(row, "total_input"),
            output_tokens=whole(row, "out_token_size"),
            shared_tokens=whole(row, "carried_over"),
        )
        context = 0 if last is None else last.turn.input_tokens + last.turn.output_tokens
        if turn.shared_tokens > context:
            raise ValueError(f"carried_over: {turn.shared_tokens} of a context of {context}")
        gathering.add_turn(RawTurn(name, 0.0, turn))

    gathering = Gathering(has_arrivals=False, has_gaps=False)
    return _read_rows(lines, CONSERVE_COLUMNS, take, gathering)


def read_claude_code(lines: Iterable[Line]) -> Trace:
    """Turns of Claude Code sessions (WEKA). A sub-agent is a conversation of its own.

    Shared with the previous turn is what the file says of whole 64-token blocks of its *prompt*:
    a lower bound, since the answer comes back in the next prompt and is counted as appended. A
    session begins at 0. The tool gap is the time from the end of a turn (`t_s` + `api_time_s`) to
    the next one's `t_s`; where they overlap, 0.
    """
    ends_at_s: dict[str, float] = {}

    def take(gathering: Gathering, number: int, row: Row) -> None:
        name = f"{row['trace_id']}/{row['agent']}"
        at_s, last = seconds(row, "t_s"), gathering.last(name)
        if last is not None and at_s < last.arrived_at_s:
            raise ValueError(f"t_s: {at_s} is before the previous turn of {name}")
        turn = TurnPlan(
            input_tokens=whole(row, "in_tokens"),
            output_tokens=whole(row, "out_tokens"),
            shared_tokens=0
            if last is None
            else min(last.turn.input_tokens, whole(row, "cached_prefix_tokens_prev_turn")),
            gap_s=0.0 if last is None else max(0.0, at_s - ends_at_s[name]),
        )
        ends_at_s[name] = at_s + seconds(row, "api_time_s")
        gathering.add_turn(RawTurn(name, at_s, turn))

    return _read_rows(lines, CLAUDE_CODE_COLUMNS, take, Gathering())


def read_azure(lines: Iterable[Line]) -> Trace:
    """Azure's LLM inference traces: single turns, by wall clock."""
    begins_at: datetime | None = None

    def take(gathering: Gathering, number: int, row: Row) -> None:
        nonlocal begins_at
        text = row["TIMESTAMP"]
        try:
            at = datetime.fromisoformat(_TOO_FINE.sub(r"\1", text))
        except ValueError:
            raise ValueError(f"TIMESTAMP: {text!r} is not a time") from None
        at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)  # the trace of 2023 names no zone
        turn = TurnPlan(
            input_tokens=whole(row, "ContextTokens"), output_tokens=whole(row, "GeneratedTokens")
        )
        begins_at = begins_at or at
        if at < begins_at:
            raise ValueError(f"TIMESTAMP: {text} is before the first one")
        after_s = (at - begins_at).total_seconds()
        gathering.add_turn(RawTurn(f"line-{number}", after_s, turn))

    return _read_rows(lines, AZURE_COLUMNS, take, Gathering(has_gaps=False))


class MooncakeLine(msgspec.Struct):
    """One request; `timestamp` in milliseconds, `hash_ids` of 512-token blocks."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_mooncake(lines: Iterable[Line]) -> Trace:
    """Mooncake's request traces, which have no conversations: they follow from hash chains.

    A request continues the conversation whose latest prompt it extends: all of that prompt's
    blocks but the last, partly filled one are its own first blocks. Shared are these whole blocks,
    a lower bound. Requests with a common preamble and nothing else look like a conversation too.
    A tool gap is the time between arrivals, too long by the service time, which the file lacks.
    """
    gathering = Gathering(about_gaps=FROM_ARRIVALS)
    decoder = msgspec.json.Decoder(MooncakeLine)
    tips: dict[tuple[int, int], str] = {}

    def take(number: int, text: str) -> None:
        found = decoder.decode(text)
        at_s, blocks = found.timestamp / 1000, found.hash_ids
        name, num_shared = _continued(tips, blocks)
        name = name or f"line-{number}"
        last = gathering.last(name)
        turn = TurnPlan(
            input_tokens=found.input_length,
            output_tokens=found.output_length,
            shared_tokens=0
            if last is None
            else min(found.input_length, last.turn.input_tokens, num_shared * BLOCK_TOKENS),
            gap_s=0.0 if last is None else max(0.0, at_s - last.arrived_at_s),
        )
        if num_shared:
            del tips[num_shared, blocks[num_shared - 1]]
        if len(blocks) > 1:
            tips[len(blocks) - 1, blocks[-2]] = name
        gathering.add_turn(RawTurn(name, at_s, turn))

    for line in lines:
        with gathering.line(line.number):
            take(line.number, line.text)
    return gathering.trace()


def _continued(tips: dict[tuple[int, int], str], blocks: list[int]) -> tuple[str | None, int]:
    """The conversation a prompt continues, and how many of its blocks that had; None for none."""
    for length in range(len(blocks), 0, -1):
        name = tips.get((length, blocks[length - 1]))  # an id stands for all blocks up to it
        if name is not None:
            return name, length
    return None, 0


def _read_rows(
    lines: Iterable[Line],
    columns: tuple[str, ...],
    take: Callable[[Gathering, int, Row], None],
    gathering: Gathering,
) -> Trace:
    for number, row in rows(lines, columns, gathering):
        with gathering.line(number):
            take(gathering, number, row)
    return gathering.trace()
