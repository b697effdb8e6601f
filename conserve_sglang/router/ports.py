"""What the clients' side of the router asks of the brain's side, in one process or across two."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from conserve_sglang.core.ids import TenantId, WorkerId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.dispatch import Event
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.fleet import Worker
from conserve_sglang.router.history import FiledAt, HistoryHash
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.router.salt import Salts
from conserve_sglang.router.turn import Turn
from conserve_sglang.workers.usage import Usage


class BrainPort(Protocol):
    """Takes what becomes of turns; see `Brain`. Commands come back through the executor."""

    hashing: HistoryHash
    salts: Salts

    def tell(self, event: Event) -> None:
        """Something happened."""
        ...

    def arrive(self, turn: Turn) -> None:
        """A turn came in."""
        ...

    def answered(self, turn: Turn, usage: Usage | None) -> None:
        """A turn's answer is whole."""
        ...

    def unanswered(self, turn: Turn) -> None:
        """A turn is over without a whole answer."""
        ...

    def file(self, conversation: Conversation, at: FiledAt | None) -> None:
        """The history a conversation's client will come back with."""
        ...

    def end_conversation(self, conversation: Conversation) -> None:
        """The client said it is over."""
        ...

    def keep_response(self, tenant: TenantId, response_id: str, stored: Stored) -> None:
        """A client may go on from this response."""
        ...


class FleetView(Protocol):
    """The workers, as far as those who send them turns must know."""

    @property
    def may_decode(self) -> bool:
        """Whether a decoder is up or may come up."""
        ...

    def workers(self) -> tuple[Worker, ...]:
        """All workers there are now, up or down."""
        ...

    def worker(self, worker_id: WorkerId) -> Worker:
        """A worker by its name."""
        ...

    def is_up(self, worker_id: WorkerId) -> bool:
        """Whether a worker is given turns."""
        ...

    def is_removed(self, worker_id: WorkerId) -> bool:
        """Whether a worker leaves on an operator's word, or is known no more."""
        ...


class Subject(Enum):
    """What a question about the router is about."""

    HEALTH = "health"
    READY = "ready"
    LIVE = "live"
    CONVERSATION = "conversation"
    END = "end"
    PLACE = "place"
    PLACED = "placed"
    HISTORY = "history"
    RESPONSE = "response"
    ITEMS = "items"
    FORGET = "forget"


PROBES = {
    b"/health": Subject.HEALTH,
    b"/ready": Subject.READY,  # SGLang's name for it
    b"/live": Subject.LIVE,
    b"/readiness": Subject.READY,  # sglang-router's names
    b"/liveness": Subject.LIVE,
}
"""What is told without a key, by its path."""


@dataclass(slots=True)
class Question:
    """What a client asks of the brain: about the router (`is_brief`: as strangers are told), about
    the tenant's conversation `name`, with a `body` for a place, or of the response `name`: its
    history to go on from or by `ITEMS`, the response object, or to be forgotten. Of a place,
    `request_line` has the request's id."""

    subject: Subject
    tenant: TenantId = DEFAULT_TENANT.tenant_id
    name: bytes = b""
    body: bytes = b""
    is_brief: bool = False
    request_line: bytes = b""


@dataclass(slots=True)
class Told:
    """What the brain says, as an HTTP answer; `code` is that of an error. Frozen by agreement
    only, as `Question` is."""

    status: int
    content_type: bytes
    body: bytes
    retry_after_s: int | None = None
    code: str | None = None


def refusal(problem: Problem) -> Told:
    """An error as an answer."""
    kind = b"application/json"
    return Told(problem.status, kind, problem.to_json(), problem.retry_after_s, problem.code)


class About(Protocol):
    """Answers questions about the router, now or later."""

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """`hear` is told the answer once."""
        ...
