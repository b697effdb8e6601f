"""Our own format: one conversation a line.

    {"conversation_id": "a", "arrived_at_s": 0.5,
     "turns": [{"input_tokens": 900, "output_tokens": 40},
               {"input_tokens": 1000, "output_tokens": 30, "shared_tokens": 940, "gap_s": 2.0}]}

Fields with a default (`arrived_at_s`, `shared_tokens`, `gap_s`: 0) may be left out; unknown ones
are errors. README.md tells what they mean.
"""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.traces.reading import Gathering, Line, Trace
from conserve_sglang.workload import ConversationPlan, TurnPlan


class TurnLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of a line."""

    input_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    gap_s: float = 0.0


class ConversationLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line."""

    conversation_id: str
    turns: list[TurnLine]
    arrived_at_s: float = 0.0


def read_own(lines: Iterable[Line]) -> Trace:
    """Read our JSONL."""
    gathering = Gathering()
    decoder = msgspec.json.Decoder(ConversationLine)
    seen: set[str] = set()

    def take(text: str) -> None:
        found = decoder.decode(text)
        if found.conversation_id in seen:
            raise ValueError(f"conversation {found.conversation_id!r} stands here twice")
        gathering.add(
            ConversationPlan(
                conversation_id=ConversationId(found.conversation_id),
                turns=tuple(TurnPlan(**msgspec.structs.asdict(turn)) for turn in found.turns),
                arrived_at_s=found.arrived_at_s,
            )
        )
        seen.add(found.conversation_id)

    for line in lines:
        with gathering.line(line.number):
            take(line.text)
    trace = gathering.trace()
    return replace(
        trace,
        has_arrivals=any(plan.arrived_at_s for plan in trace.conversations),
        has_gaps=any(turn.gap_s for plan in trace.conversations for turn in plan.turns),
    )


def write_conversation(plan: ConversationPlan) -> str:
    """One conversation as a line of our JSONL, without its newline."""
    line = ConversationLine(
        conversation_id=plan.conversation_id,
        turns=[_turn_line(turn) for turn in plan.turns],
        arrived_at_s=plan.arrived_at_s,
    )
    return msgspec.json.encode(line).decode()


def _turn_line(turn: TurnPlan) -> TurnLine:
    return TurnLine(
        input_tokens=turn.input_tokens,
        output_tokens=turn.output_tokens,
        shared_tokens=turn.shared_tokens,
        gap_s=turn.gap_s,
    )
