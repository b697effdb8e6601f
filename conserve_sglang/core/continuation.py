"""How an answer goes on at another decoder after its own was lost in the middle of it.

A stream that is to be resumable asks its decoder to tell the token ids (`TELL_HEADER`). The
decoder then ends each of its events with one line more, a comment for any reader of server-sent
events, which the router takes out again:

    data: {"id": ...}
    :=264                        the ids of this step of the answer, in the step's first event

An event without ids of its own has an empty `:=`. Steps that gave no event are told with the
next one: `:=264;17,3` are two steps, the second of two tokens. The steps, in order, and how many
events the client has are all it takes: a server that makes the same steps again makes the same
events again, and leaves out those the client has.

The router then sends the same body to another pair, with a `Continuation` in place of the
request's id. Either server appends the tokens to the prompt, all but the last; the decoder takes
the last one for the prefiller's first token, and goes on with tokens, text, parsers, stop strings
and counts as they were.
"""

import re
from dataclasses import dataclass

from conserve_sglang.core.turn_tag import TAG_SUFFIX

TELL_HEADER = "x-conserve-tell"
TELL_LINE = b"x-conserve-tell: ids\r\n"
MARK = b"\n:="

_PREFIX = "conserve-continue"
_PATTERN = re.compile(rf"^{_PREFIX} events=(\d+) created=(\d+) id=(\S*) steps=([\d,;]+)$")
_HANDOFF_PREFIX = "conserve-continued"
_HANDOFF_PATTERN = re.compile(
    rf"^{_HANDOFF_PREFIX} sent=(\d+) last=(\d+) max=(\d+|none){TAG_SUFFIX}$"
)

Steps = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What the client has of an answer: its id and time, its events, and their tokens by step."""

    answer_id: str
    created: int
    num_events: int
    steps: Steps

    @property
    def token_ids(self) -> list[int]:
        """All tokens sent so far."""
        return [token_id for step in self.steps for token_id in step]

    @classmethod
    def from_rid(cls, rid: object) -> "Continuation | None":
        """Read what `continuation_rid` wrote; None when `rid` is a plain request id."""
        match = _PATTERN.match(rid) if isinstance(rid, str) else None
        if match is None:
            return None
        steps = tuple(
            tuple(int(token_id) for token_id in step.split(",") if token_id)
            for step in match[4].split(";")
            if step
        )
        return cls(answer_id=match[3], created=int(match[2]), num_events=int(match[1]), steps=steps)


def continuation_rid(*, answer_id: str, created: int, num_events: int, steps: str) -> str:
    """A continuation as it travels in place of the request's id; `steps` as they were told."""
    return f"{_PREFIX} events={num_events} created={created} id={answer_id} steps={steps}"


def told_step(new_ids: list[int]) -> str:
    """One step of an answer, as it is told."""
    return str(new_ids[0]) if len(new_ids) == 1 else ",".join(map(str, new_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    """What a scheduler is told of a continued request, in its `routing_key`.

    `num_sent` tokens of the answer were sent; the input ends with all of them but the last,
    which is `last_id`. `max_new_tokens` is the client's own limit.
    """

    num_sent: int
    last_id: int
    max_new_tokens: int | None

    def to_routing_key(self) -> str:
        """As it travels in `routing_key`."""
        limit = "none" if self.max_new_tokens is None else self.max_new_tokens
        return f"{_HANDOFF_PREFIX} sent={self.num_sent} last={self.last_id} max={limit}"

    @classmethod
    def from_routing_key(cls, value: str | None) -> "Handoff | None":
        """Read it; None when `value` is something else."""
        match = _HANDOFF_PATTERN.match(value) if value else None
        if match is None:
            return None
        limit = None if match[3] == "none" else int(match[3])
        return cls(num_sent=int(match[1]), last_id=int(match[2]), max_new_tokens=limit)
