"""Trajectories of messages are counted with a tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from conserve_sglang.core.errors import TraceError
from conserve_sglang.traces import Trace, read_trace
from conserve_sglang.traces.messages import read_messages, read_swe_agent
from conserve_sglang.traces.reading import Line

SHARED = Path(__file__).parents[3] / "shared" / "data" / "sweagent"
HEAD = len("<|im_start|>assistant\n")
USER = len("<|im_start|>user\n")
END = len("<|im_end|>")


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def read(*documents: Any) -> Trace:
    """One letter is one token."""
    lines = [Line(number, json.dumps(d)) for number, d in enumerate(documents, start=1)]
    return read_messages(lines, len)


def turns_of(trace: Trace) -> list[tuple[int, int, int]]:
    return [
        (t.input_tokens, t.output_tokens, t.shared_tokens)
        for plan in trace.conversations
        for t in plan.turns
    ]


def test_each_message_of_the_assistant_is_a_turn_that_shares_all_before_it() -> None:
    trace = read(
        {
            "id": "c",
            "messages": [
                message("user", "abc"),
                message("assistant", "defg"),
                message("user", "hi"),
                message("assistant", "j"),
            ],
        }
    )
    first = USER + 3 + END + 1 + HEAD
    output = 4 + END
    second = first + output + 1 + USER + 2 + END + 1 + HEAD
    assert turns_of(trace) == [(first, output, 0), (second, 1 + END, first + output)]
    assert trace.conversations[0].conversation_id == "c"


def test_a_bare_list_of_messages_and_text_in_parts() -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    bare = [message("user", parts), message("assistant", "d")]
    assert turns_of(read(bare)) == [(USER + 3 + END + 1 + HEAD, 1 + END, 0)]


def test_tool_calls_are_output_and_tools_stand_before_the_messages() -> None:
    call = {"function": {"name": "ls", "arguments": {"path": "x"}}}
    tool = {"type": "function", "function": {"name": "ls"}}
    plain = [message("user", "a"), message("assistant", None)]
    calling = [message("user", "a"), message("assistant", None, tool_calls=[call])]
    without, with_call, with_tool = turns_of(
        read(plain, calling, {"messages": plain, "tools": [tool]})
    )
    rendered = '\n<tool_call>\n{"name": "ls", "arguments": {"path":"x"}}\n</tool_call>'
    assert with_call[1] - without[1] == len(rendered)
    schema = json.dumps(tool, separators=(",", ":"))
    assert with_tool[0] - without[0] == len(f"<|im_start|>tools\n{schema}<|im_end|>\n")


def test_thinking_is_output_but_not_in_the_next_prompt() -> None:
    trace = read(
        [
            message("user", "a"),
            message("assistant", "b", reasoning_content="hmm"),
            message("user", "c"),
            message("assistant", "d"),
        ]
    )
    (first, second) = turns_of(trace)
    assert first[1] == len("<think>\nhmm\n</think>\n\n") + 1 + END
    assert second[2] == first[0] - HEAD  # what follows the user's words is different


def test_what_cannot_be_counted_is_named_by_its_line() -> None:
    image = [message("user", [{"type": "image_url"}]), message("assistant", "b")]
    good = {"id": "c", "messages": [message("user", "a"), message("assistant", "b")]}
    trace = read(
        image, good, {"messages": [message("user", "a")]}, good, {"x": 1}, 3, {"messages": 4}
    )
    assert len(trace.conversations) == 1
    assert [bad.number for bad in trace.bad_lines] == [1, 3, 4, 5, 6, 7]
    whys = [bad.why for bad in trace.bad_lines]
    assert "'image_url', is no text" in whys[0]
    assert "no message of an assistant" in whys[1]
    assert "stands here twice" in whys[2]
    assert whys[3] == "no field 'messages'"
    assert (trace.num_lines, trace.unit) == (7, "conversations")


def test_values_of_another_shape_make_a_bad_line_each() -> None:
    good = {"messages": [message("user", "a"), message("assistant", "b")]}
    calls: list[Any] = [7, [7], [{"function": None}], [{"function": {"name": "n"}}]]
    odd = [
        {"messages": [message("user", "a"), {"role": "assistant", "tool_calls": each}]}
        for each in calls
    ]
    trace = read(
        *odd,
        {"messages": [message("user", "a"), {"role": "assistant", "content": 5}]},
        good | {"tools": 5},
        good,
    )
    assert [bad.number for bad in trace.bad_lines] == [1, 2, 3, 4, 5, 6]
    assert len(trace.conversations) == 1


@pytest.mark.parametrize("trajectory", [None, 5, [5], [{"query": None}], [{"response": "r"}]])
def test_a_trajectory_of_another_shape_is_a_bad_line(trajectory: Any) -> None:
    trace = read_swe_agent([Line(1, json.dumps({"trajectory": trajectory}))], len)
    assert [bad.number for bad in trace.bad_lines] == [1]
    assert not trace.conversations


def swe(steps: list[dict[str, Any]]) -> Trace:
    return read_swe_agent([Line(1, json.dumps({"trajectory": steps}))], len)


SYSTEM = message("system", "s")
ANSWERS = [message("assistant", "one"), message("assistant", "two"), message("assistant", "3")]
OBSERVED = [message("tool", "result"), message("tool", "r2")]
ELIDED = message("tool", "-")


def test_both_layouts_of_swe_agent_are_the_same_requests() -> None:
    first = [SYSTEM]
    second = [SYSTEM, ANSWERS[0], OBSERVED[0]]
    third = [SYSTEM, ANSWERS[0], ELIDED, ANSWERS[1], OBSERVED[1]]
    queries = swe(
        [
            {"query": query, "response": answer["content"], "execution_time": 1.5}
            for query, answer in zip((first, second, third), ANSWERS, strict=True)
        ]
    )
    last = [*third, ANSWERS[2], message("tool", "bye")]
    messages = swe(
        [
            {"messages": after, "response": "", "execution_time": 1.5}
            for after in (second, third, last)
        ]
    )
    assert queries.conversations == messages.conversations
    turns = queries.conversations[0].turns
    assert [turn.gap_s for turn in turns] == [0.0, 1.5, 1.5]
    assert turns[1].shared_tokens == turns[0].input_tokens + turns[0].output_tokens
    # The elided observation ends what the third prompt has in common with the second.
    head = len("<|im_start|>system\n") + 1 + END + 1
    assert turns[2].shared_tokens == head + HEAD + 3 + END + 1


def test_a_trajectory_without_an_answer_is_bad() -> None:
    assert "have no answer" in swe([{"messages": [SYSTEM]}]).bad_lines[0].why
    assert "no turn" in swe([]).bad_lines[0].why
    assert "no field 'trajectory'" in read_swe_agent([Line(1, "{}")], len).bad_lines[0].why


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder = tmp_path / "model"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_file_of_messages_needs_a_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([message("user", "äb"), message("assistant", "c")], indent=1))
    with pytest.raises(TraceError, match=r"give the tokenizer\.json of the model with --tokenizer"):
        read_trace(path)
    for given in (tokenizer, tokenizer / "tokenizer.json"):
        assert turns_of(read_trace(path, tokenizer=given)) == [(USER + 3 + END + 1 + HEAD, 11, 0)]


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([message("user", "a"), message("assistant", "c")]))
    with pytest.raises(TraceError, match="no such tokenizer file"):
        read_trace(path, tokenizer=tmp_path)
    with pytest.raises(TraceError, match=r"is no tokenizer\.json"):
        read_trace(path, tokenizer=path)


def test_a_real_trajectory_loses_its_prefix_where_observations_are_elided(tokenizer: Path) -> None:
    path = SHARED / "marshmallow-1867_function_calling.traj"
    if not path.exists():
        pytest.skip("the public trajectory is not here")
    trace = read_trace(path, tokenizer=tokenizer)
    assert trace.bad_lines == ()
    (plan,) = trace.conversations
    assert len(plan.turns) == 13
    whole = [
        after.shared_tokens == before.input_tokens + before.output_tokens
        for before, after in zip(plan.turns, plan.turns[1:], strict=False)
    ]
    assert whole == [True] * 5 + [False] * 7  # five observations are kept whole
    assert plan.turns[3].gap_s == pytest.approx(1.951, abs=0.001)
