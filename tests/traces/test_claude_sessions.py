"""Raw Claude Code sessions are read with their sub-agents."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from conserve_sglang.traces import Trace, read_trace
from conserve_sglang.workload import TurnPlan

SAMPLES = Path(__file__).parent / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "claude_code_weka"


@pytest.fixture
def trace() -> Trace:
    return read_trace(SAMPLES / "session.json")


def turns_of(trace: Trace, name: str) -> list[tuple[int, int, int, float]]:
    (plan,) = [plan for plan in trace.conversations if plan.conversation_id == name]
    return [(t.input_tokens, t.output_tokens, t.shared_tokens, t.gap_s) for t in plan.turns]


def test_turns_share_the_blocks_in_common_with_the_agents_last_prompt(trace: Trace) -> None:
    assert turns_of(trace, "s1/main") == [
        (200, 30, 0, 0.0),
        (400, 40, 192, 10.5),
        (180, 5, 64, 7.5),  # the one before does not say how long it took
    ]


def test_a_sub_agent_is_a_conversation_from_when_it_was_started(trace: Trace) -> None:
    assert turns_of(trace, "s1/agent_001") == [(150, 10, 0, 0.0), (300, 20, 128, 3.0)]
    assert [(p.conversation_id, p.arrived_at_s) for p in trace.conversations] == [
        ("s1/main", 0.0),
        ("s1/agent_001", 2.5),
    ]


def test_requests_that_cannot_be_used_are_named(trace: Trace) -> None:
    assert (trace.num_lines, trace.unit) == (8, "requests")
    assert [line.why.split(": ", 1)[0] for line in trace.bad_lines] == [
        "agent_001, request 2",
        "main, request 4",
        "main, request 6",
    ]
    assert trace.bad_lines[1].why.endswith("t: 11.0 is before the previous request's")


def test_sessions_may_stand_one_a_line(tmp_path: Path) -> None:
    document = json.loads((SAMPLES / "session.json").read_text(encoding="utf-8"))
    lines = [json.dumps({**document, "id": name}) for name in ("a", "b", "a")]
    path = tmp_path / "sessions.jsonl"
    path.write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    trace = read_trace(path)
    assert len(trace.conversations) == 4
    assert [bad.number for bad in trace.bad_lines][-2:] == [3, 4]
    assert trace.bad_lines[-2].why == "session 'a' stands here twice"


def test_an_agent_that_stands_twice_is_left_out_once(tmp_path: Path) -> None:
    document = json.loads((SAMPLES / "session.json").read_text(encoding="utf-8"))
    document["requests"].append(document["requests"][1])
    path = tmp_path / "session.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    trace = read_trace(path)
    assert len(turns_of(trace, "s1/agent_001")) == 2
    assert trace.bad_lines[-1].why.endswith("agent 'agent_001' stands here twice")


@pytest.mark.parametrize("number", ["0072", "0274", "0330", "0574", "0586"])
def test_raw_sessions_and_the_table_made_of_them_are_read_alike(number: str) -> None:
    if not SHARED.exists():
        pytest.skip("the public sessions are not here")
    raw = read_trace(SHARED / f"trace_{number}.json")
    table = read_trace(SHARED / "claude_code_agent_turns.csv")
    rows = {plan.conversation_id: plan.turns for plan in table.conversations}
    assert raw.bad_lines == ()
    for plan in raw.conversations:
        session, agent = plan.conversation_id.split("/")
        name = agent if agent == "main" else f"sub{int(agent[-3:]) - 1}"
        expected = rows[next(key for key in rows if key == f"{session}/{name}")]
        assert [figures(turn) for turn in plan.turns] == [figures(turn) for turn in expected]


def figures(turn: TurnPlan) -> tuple[int, int, int, float]:
    return (turn.input_tokens, turn.output_tokens, turn.shared_tokens, round(turn.gap_s, 6))


def test_sub_agents_called_in_one_answer_begin_together() -> None:
    if not SHARED.exists():
        pytest.skip("the public sessions are not here")
    plans = read_trace(SHARED / "trace_0274.json").conversations
    starts = [plan.arrived_at_s for plan in plans[1:]]
    assert len(starts) == 3
    assert all(after - before < 0.1 for before, after in pairwise(starts))
    assert starts[0] == pytest.approx(18.99 + 0.5, abs=0.1)  # the answer takes 18.99 s
