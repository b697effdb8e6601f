"""Trajectories as messages with text: OpenAI's form, and SWE-agent's files.

Lengths are counted, message by message, in the ChatML form that Qwen's models use: a head with the
role, text and tool calls, an end mark. Another model's template adds a few tokens more or less to
each message; the text itself is what counts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from conserve_sglang.traces.reading import Gathering, Line, RawTurn, Trace, documents
from conserve_sglang.traces.tokens import CountTokens
from conserve_sglang.workload import TurnPlan

ANSWER_HEAD = "<|im_start|>assistant\n"
END = "<|im_end|>"
Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One model request: the messages of its prompt, its answer, and the tool gap before it."""

    prompt: Sequence[Message]
    answer: Message
    gap_s: float = 0.0


def read_messages(lines: Iterable[Line], count: CountTokens) -> Trace:
    """Conversations as lists of messages: `{"messages": [...]}`, one a line or one in the file, or
    a bare list. Each message of the assistant is a turn's answer, and all before it the prompt.
    The tools of a field `tools` stand before the messages. There are no times: all conversations
    arrive at 0, without tool gaps. Thinking (`reasoning_content`) is counted as output, and not as
    part of later prompts. A conversation is named by `conversation_id`, `id` or `instance_id`.
    """
    gathering = Gathering("conversations", has_arrivals=False, has_gaps=False)
    for line in documents(lines):
        with gathering.line(line.number):
            given = msgspec.json.decode(line.text)
            document = {"messages": given} if isinstance(given, list) else given
            if not isinstance(document, dict):
                raise ValueError("neither an object with messages nor a list of them")
            messages = _messages(document["messages"])
            tools = [_tool_message(tool) for tool in document.get("tools") or ()]
            exchanges = [
                Exchange(prompt=[*tools, *messages[:index]], answer=message)
                for index, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
            _add(gathering, _name(document, line.number), exchanges, count)
    return gathering.trace()


def read_swe_agent(lines: Iterable[Line], count: CountTokens) -> Trace:
    """Trajectories of SWE-agent 1.x, one a line or one in the file.

    A step's prompt is its `query`, or, in files that have `messages`, those of the step before:
    they are what the next request is made of, with old observations elided, which changes the
    prompt's beginning. The tool gap is the `execution_time` of the step before. Tools offered are
    not in the file, and so not counted. One conversation arrives at 0.
    """
    gathering = Gathering("trajectories", has_arrivals=False)
    for line in documents(lines):
        with gathering.line(line.number):
            document = msgspec.json.decode(line.text)
            if not isinstance(document, dict):
                raise ValueError("no object with a trajectory")
            exchanges = list(_steps(document["trajectory"]))
            _add(gathering, _name(document, line.number), exchanges, count)
    return gathering.trace()


def _steps(steps: Sequence[dict[str, Any]]) -> Iterator[Exchange]:
    """Each step's request, in either of the two layouts."""
    after: Sequence[Message] = ()
    gap_s = 0.0
    for number, step in enumerate(steps):
        if "query" in step:
            prompt = _messages(step["query"])
            answer = _answer_in(steps[number + 1 :], len(prompt)) or _response(step)
        else:
            before, after = after, _messages(step["messages"])
            index = _last_answer(after)
            prompt = list(before or after[:index])
            answer = after[index]
        yield Exchange(prompt=prompt, answer=answer, gap_s=gap_s)
        gap_s = max(0.0, float(step.get("execution_time") or 0.0))


def _answer_in(later: Sequence[dict[str, Any]], index: int) -> Message | None:
    """An answer as the next request quotes it, with its tool calls."""
    messages = _messages(later[0]["query"]) if later and "query" in later[0] else []
    is_quoted = len(messages) > index and messages[index]["role"] == "assistant"
    return messages[index] if is_quoted else None


def _response(step: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": step["response"]}


def _last_answer(messages: Sequence[Message]) -> int:
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "assistant":
            return index
    raise ValueError("a step's messages have no answer")


def _add(
    gathering: Gathering, name: str, exchanges: Sequence[Exchange], count: CountTokens
) -> None:
    if not exchanges:
        raise ValueError("no message of an assistant, and so no turn")
    if gathering.num_turns(name):
        raise ValueError(f"conversation {name!r} stands here twice")
    for turn in list(_turns(exchanges, count)):  # all or none of them
        gathering.add_turn(RawTurn(name, 0.0, turn))


def _turns(exchanges: Sequence[Exchange], count: CountTokens) -> Iterator[TurnPlan]:
    had: list[str] = []  # the messages that the turn before left in its KV
    had_tokens = 0
    for number, exchange in enumerate(exchanges):
        prompt = [_rendered(message) for message in exchange.prompt]
        tokens = [_count(message, count) for message in prompt]
        num_same = _num_same(had, prompt)
        turn = TurnPlan(
            input_tokens=sum(tokens) + count(ANSWER_HEAD),
            output_tokens=count(_body(exchange.answer, with_thinking=True) + END),
            shared_tokens=had_tokens if num_same == len(had) else sum(tokens[:num_same]),
            gap_s=exchange.gap_s if number else 0.0,
        )
        yield turn
        if exchange.answer.get("reasoning_content"):  # the next prompt will be without it
            had, had_tokens = prompt, sum(tokens)
        else:
            had = [*prompt, _rendered(exchange.answer)]
            had_tokens = turn.input_tokens + turn.output_tokens


def _num_same(one: Sequence[str], other: Sequence[str]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _rendered(message: Message) -> str:
    return f"<|im_start|>{message['role']}\n{_body(message)}{END}\n"


def _count(rendered: str, count: CountTokens) -> int:
    """In the parts a turn is made of, so that a prompt's tokens are those of what made it."""
    head, _, rest = rendered.partition("\n")
    return count(head + "\n") + count(rest[:-1]) + count("\n")


def _body(message: Message, *, with_thinking: bool = False) -> str:
    """Text and tool calls. Raises ValueError for parts that are no text."""
    thinking = message.get("reasoning_content") if with_thinking else None
    text = f"<think>\n{thinking}\n</think>\n\n" if thinking else ""
    content = message.get("content") or ""
    if isinstance(content, str):
        text += content
    else:
        text += "".join(_part(part) for part in content)
    calls = message.get("tool_calls") or ()
    return text + "".join(f"\n<tool_call>\n{_call(call)}\n</tool_call>" for call in calls)


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f"a part of content, {kind!r}, is no text and cannot be counted")


def _call(call: Any) -> str:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return f'{{"name": "{function["name"]}", "arguments": {arguments}}}'


def _tool_message(tool: Any) -> Message:
    return {"role": "tools", "content": msgspec.json.encode(tool).decode()}


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in given
    ):
        raise ValueError("messages: not a list of objects with a role")
    return given


def _name(document: Message, number: int) -> str:
    for field in ("conversation_id", "id", "instance_id"):
        if document.get(field):
            return str(document[field])
    return f"line-{number}"
