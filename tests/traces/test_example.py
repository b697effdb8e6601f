"""The example of our format, and what its document says of it."""

import json
from pathlib import Path

from conserve_sglang import traces
from conserve_sglang.traces import FORMATS, Source, draw, format_of, read_trace, write_conversation

FOLDER = Path(traces.__file__).parent
README = (FOLDER / "README.md").read_text()


def test_the_example_is_read_whole() -> None:
    trace = read_trace(FOLDER / "example.jsonl")
    assert trace.bad_lines == ()
    assert (trace.has_arrivals, trace.has_gaps) == (True, True)
    turns = {str(plan.conversation_id): plan.turns for plan in trace.conversations}
    assert [turn.append_tokens for turn in turns["fix-a-bug"]] == [12_000, 67, 200]
    assert turns["history-elided"][1].append_tokens == 6500
    assert draw(Source(trace=FOLDER / "example.jsonl")).notes == ()


def test_an_agent_that_only_appends_shares_all_there_was() -> None:
    (plan,) = (
        plan
        for plan in read_trace(FOLDER / "example.jsonl").conversations
        if plan.conversation_id == "fix-a-bug"
    )
    for before, turn in zip(plan.turns, plan.turns[1:], strict=False):
        assert turn.shared_tokens == before.input_tokens + before.output_tokens


def test_the_document_shows_the_examples_first_line() -> None:
    shown = [line[4:] for line in README.splitlines() if line.startswith("    ")]
    first, *_ = (FOLDER / "example.jsonl").read_text().splitlines()
    assert json.loads("".join(shown)) == json.loads(first)
    assert format_of("".join(shown)) == "conversations"
    plan = read_trace(FOLDER / "example.jsonl").conversations[0]
    assert read_again(write_conversation(plan)) == read_again(first)


def read_again(line: str) -> dict[str, object]:
    """Its values with the defaults filled in."""
    value = json.loads(line)
    for turn in value["turns"]:
        turn.setdefault("shared_tokens", 0)
        turn.setdefault("gap_s", 0.0)
    return dict(value)


def test_the_document_names_every_format_and_field() -> None:
    assert [name for name in FORMATS if f"`{name}`" not in README] == []
    fields = ("conversation_id", "arrived_at_s", "input_tokens", "output_tokens", "shared_tokens")
    assert [name for name in (*fields, "gap_s") if f"{name}`" not in README] == []
