"""Raw Claude Code sessions (WEKA), one JSON object each, with the sub-agents they started.

Requests name the 64-token blocks of their prompt by `hash_ids`, local to the session.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

import msgspec

from conserve_sglang.traces.reading import Gathering, Line, RawTurn, Trace, documents
from conserve_sglang.workload import TurnPlan

MS_PER_S = 1000


class SessionDocument(msgspec.Struct):
    """One session."""

    id: str
    requests: list[msgspec.Raw]
    block_size: int = 64


class Request(msgspec.Struct):
    """A model request: `t` seconds after its agent began, `api_time` seconds long where known."""

    t: float
    prompt_tokens: int = msgspec.field(name="in")
    output_tokens: int = msgspec.field(name="out")
    hash_ids: list[int]
    api_time: float | None = None


class SubAgent(msgspec.Struct):
    """An agent that the session started, with requests of its own; `t` is when it *ended*."""

    t: float
    agent_id: str
    requests: list[msgspec.Raw]
    duration_ms: float = 0.0


class Kind(msgspec.Struct):
    """Which of the two an element is."""

    type: str = ""


def read_claude_sessions(lines: Iterable[Line]) -> Trace:
    """Turns of Claude Code sessions. Each sub-agent is a conversation of its own, which arrives
    when it was started: `t` less `duration_ms`. (In trace_0274 three of them that end 160 to 300 s
    into the session so begin at the same moment, half a second after the answer that asks for
    them.) Its parent's next turn comes by its tool gap, whenever the sub-agents are done.

    Shared are the whole blocks in common with the agent's previous prompt: a lower bound, since the
    answer comes back in the next prompt and is counted as appended. Blocks in common with another
    agent are not told. A tool gap is the time from the end of a turn to the next one's start; where
    a request does not say how long it took, from its start, which is too long.
    """
    gathering = Gathering("requests")
    seen: set[str] = set()
    for line in documents(lines):
        try:
            document = msgspec.json.decode(line.text, type=SessionDocument)
            if document.id in seen:
                raise ValueError(f"session {document.id!r} stands here twice")
        except (ValueError, msgspec.MsgspecError) as error:
            gathering.refuse(line.number, str(error))
            continue
        seen.add(document.id)
        _Session(gathering, line.number, document).take()
    return gathering.trace()


class _Session:
    """One session on its way into conversations."""

    def __init__(self, gathering: Gathering, line_number: int, document: SessionDocument) -> None:
        self._gathering = gathering
        self._line_number = line_number
        self._document = document

    def take(self) -> None:
        """All its agents."""
        self._take_agent("main", 0.0, self._document.requests)

    def _take_agent(self, agent: str, begins_at_s: float, elements: Sequence[msgspec.Raw]) -> None:
        last: Request | None = None
        for number, element in enumerate(elements, start=1):
            with self._gathering.line(self._line_number, f"{agent}, request {number}"):
                if msgspec.json.decode(element, type=Kind).type == "subagent":
                    self._take_sub_agent(element)
                    self._gathering.num_lines -= 1  # its requests count, not the agent
                else:
                    found = msgspec.json.decode(element, type=Request)
                    self._take_turn(f"{self._document.id}/{agent}", begins_at_s, last, found)
                    last = found

    def _take_sub_agent(self, element: msgspec.Raw) -> None:
        found = msgspec.json.decode(element, type=SubAgent)
        if self._gathering.num_turns(f"{self._document.id}/{found.agent_id}"):
            raise ValueError(f"agent {found.agent_id!r} stands here twice")
        begins_at_s = max(0.0, found.t - found.duration_ms / MS_PER_S)
        self._take_agent(found.agent_id, begins_at_s, found.requests)

    def _take_turn(self, name: str, begins_at_s: float, last: Request | None, now: Request) -> None:
        if last is not None and now.t < last.t:
            raise ValueError(f"t: {now.t} is before the previous request's")
        turn = TurnPlan(
            input_tokens=now.prompt_tokens,
            output_tokens=now.output_tokens,
            shared_tokens=0 if last is None else self._shared_tokens(last, now),
            gap_s=0.0 if last is None else max(0.0, now.t - last.t - (last.api_time or 0.0)),
        )
        self._gathering.add_turn(RawTurn(name, begins_at_s + now.t, turn))

    def _shared_tokens(self, last: Request, now: Request) -> int:
        pairs = zip(last.hash_ids, now.hash_ids, strict=False)
        num_blocks = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        shared = num_blocks * self._document.block_size
        return min(last.prompt_tokens, now.prompt_tokens, shared)
