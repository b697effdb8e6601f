"""Plays the demo's conversations against one server with the `openai` client, streaming."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from bench.demo.scenario import NUM_TURNS, Ticket, ToolCall, request_options, tool_result
from conserve_sglang.core.latency import TurnTimes, conversation_e2e_s, ttfet_s


@dataclass(slots=True)
class PlayedTurn:
    """One answered turn. Worker names come from the router's response headers, if it has any.

    `times` are of what a client can use, text and tool calls; `event_at_s` are those of all events:
    the first comes with the first token, also where a call is told only when its name is whole.
    """

    text: str
    calls: list[ToolCall]
    times: TurnTimes
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefiller: str | None
    decoder: str | None
    reason: str | None
    event_at_s: tuple[float, ...] = ()

    @property
    def event_times(self) -> TurnTimes:
        """Arrival and all events."""
        return TurnTimes(arrived_at_s=self.times.arrived_at_s, token_at_s=self.event_at_s)

    @property
    def output(self) -> tuple[str, list[ToolCall]]:
        """What the model said, without ids that differ from run to run."""
        return self.text, self.calls


@dataclass(slots=True)
class PlayedConversation:
    """One conversation, answered to its end."""

    number: int
    turns: list[PlayedTurn] = field(default_factory=list)
    name: str | None = None  # as the router calls it
    energy: dict[str, Any] | None = None  # as the router tells it

    @property
    def ttfet_s(self) -> float:
        """Time to first effective token."""
        return ttfet_s([turn.times for turn in self.turns])

    @property
    def e2e_s(self) -> float:
        """Arrival of turn 1 to the last token of the last turn."""
        return conversation_e2e_s([turn.times for turn in self.turns])


@dataclass(slots=True)
class _Answer:
    text: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    call_ids: dict[int, str] = field(default_factory=dict)
    token_at_s: list[float] = field(default_factory=list)
    event_at_s: list[float] = field(default_factory=list)
    usage: Any = None

    def take(self, chunk: Any) -> None:
        if chunk.usage is not None:
            self.usage = chunk.usage
        if not chunk.choices:
            return
        self.event_at_s.append(time.monotonic())
        delta = chunk.choices[0].delta
        if delta.content or delta.tool_calls:
            self.token_at_s.append(time.monotonic())
        self.text += delta.content or ""
        for call in delta.tool_calls or ():
            name_and_arguments = self.calls.setdefault(call.index, ["", ""])
            if call.id:
                self.call_ids[call.index] = call.id
            if call.function is not None:
                name_and_arguments[0] += call.function.name or ""
                name_and_arguments[1] += call.function.arguments or ""


async def play_all(base_url: str, model: str, tickets: list[Ticket]) -> list[PlayedConversation]:
    """Play all conversations at once; each waits for its own turns only.

    No request says which conversation it belongs to: the router finds out by the history, as for
    any client that knows nothing of conversations.
    """
    async with AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        return await asyncio.gather(*[play_one(client, model, ticket) for ticket in tickets])


async def play_one(client: AsyncOpenAI, model: str, ticket: Ticket) -> PlayedConversation:
    """Play one conversation to its end, with a client that others may use too."""
    conversation = PlayedConversation(ticket.number)
    messages: list[Any] = list(ticket.opening)
    for turn_index in range(1, NUM_TURNS + 1):
        arrived_at_s = time.monotonic()
        raw = await client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **request_options(turn_index, ticket.tools),
        )
        answer = _Answer()
        async for chunk in raw.parse():
            answer.take(chunk)
        conversation.name = raw.headers.get("x-conversation-id")
        conversation.turns.append(_played(answer, arrived_at_s, raw.headers))
        messages += _next_messages(answer)
    return conversation


def _played(answer: _Answer, arrived_at_s: float, headers: Any) -> PlayedTurn:
    details = answer.usage.prompt_tokens_details
    return PlayedTurn(
        text=answer.text,
        calls=[(name, arguments) for name, arguments in answer.calls.values()],
        times=TurnTimes(arrived_at_s=arrived_at_s, token_at_s=tuple(answer.token_at_s)),
        prompt_tokens=answer.usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        output_tokens=answer.usage.completion_tokens,
        prefiller=headers.get("x-conserve-prefiller"),
        decoder=headers.get("x-conserve-decoder"),
        reason=headers.get("x-conserve-reason"),
        event_at_s=tuple(answer.event_at_s),
    )


def _next_messages(answer: _Answer) -> list[dict[str, Any]]:
    if not answer.calls:
        return []
    calls = [
        {
            "id": answer.call_ids[index],
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in answer.calls.items()
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": answer.call_ids[index],
            "content": tool_result((name, arguments)),
        }
        for index, (name, arguments) in answer.calls.items()
    ]
    assistant = {"role": "assistant", "content": answer.text or None, "tool_calls": calls}
    return [assistant, *results]
