"""What clients may ask about the router itself, answered from the brain."""

from collections.abc import Callable
from typing import Any

import msgspec

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.router.brain import Brain, Sharing
from conserve_sglang.router.place import Placements
from conserve_sglang.router.ports import About, Question, Subject, Told, refusal
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses_about import ABOUT_RESPONSES
from conserve_sglang.router.status import Probe, Status
from conserve_sglang.state import SavedConversation

_JSON = b"application/json"
UNKNOWN_CONVERSATION = Problem(
    status=404,
    code="conversation_not_found",
    message="There is no such conversation: it never was, or it has ended.",
)
REDIS_GONE = Problem(
    status=503,
    code="state_unavailable",
    message="This replica of the router does not know the conversation, and Redis, by which it"
    " would know of the other replicas' conversations, is gone. Try again; GET /health says when"
    " Redis is there again.",
    retry_after_s=1,
)


class AboutBrain:
    """Answers at once; what other replicas know, and places, may have to be waited for."""

    def __init__(
        self, brain: Brain, status: Status, placements: Placements, responses: About
    ) -> None:
        self._brain = brain
        self._status = status
        self._placements = placements
        self._responses = responses
        self._probes: dict[Subject, Probe] = {
            Subject.HEALTH: status.health,
            Subject.READY: status.ready,
            Subject.LIVE: status.live,
        }

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """See `About`."""
        if question.subject is Subject.PLACE:
            self._placements.ask(question, hear)
        elif question.subject is Subject.PLACED:
            self._placements.report(question, hear)
        elif question.subject in ABOUT_RESPONSES:
            self._responses.ask(question, hear)
        elif question.subject in self._probes:
            self._status.is_serving = True  # whoever asks here came through the clients' port
            status, body = self._probes[question.subject](is_brief=question.is_brief)
            hear(Told(status, _JSON, msgspec.json.encode(body)))
        elif self._brain.sharing is not None:
            self._shared(self._brain.sharing, question, hear)
        else:
            hear(self._conversation(question))

    def _shared(self, sharing: Sharing, question: Question, hear: Callable[[Told], None]) -> None:
        """About a conversation that another replica may have."""
        table = self._brain.conversations
        conversation = table.find(question.tenant, question.name)
        if question.subject is Subject.END:
            conversation = conversation or table.named(question.tenant, question.name)

            def answer(_: object) -> None:
                hear(self._conversation(question))
                table.forget_if_gone(conversation)

            sharing.claim(conversation, answer)
        elif conversation is not None and self._status.conversation(conversation) is not None:
            hear(self._conversation(question))
        else:
            tell_elsewhere(sharing, table.key_of(question.tenant, question.name), hear)

    def _conversation(self, question: Question) -> Told:
        conversation = self._brain.conversations.find(question.tenant, question.name)
        body = None if conversation is None else self._status.conversation(conversation)
        if conversation is None or body is None:
            return _not_found(self._brain.sharing)
        if question.subject is Subject.END:
            self._brain.end_conversation(conversation)
            body = {"id": body["id"], "object": "conversation", "deleted": True}
        return _ok(body)


def _ok(body: dict[str, Any]) -> Told:
    return Told(200, _JSON, msgspec.json.encode(body))


def _not_found(sharing: Sharing | None) -> Told:
    """Without Redis nobody can tell whether another replica has it."""
    is_known = sharing is None or sharing.problem is None
    return refusal(UNKNOWN_CONVERSATION if is_known else REDIS_GONE)


def tell_elsewhere(sharing: Sharing, key: ConversationId, hear: Callable[[Told], None]) -> None:
    """What other replicas have written of a conversation that this one does not know."""

    def tell(saved: SavedConversation | None) -> None:
        hear(_not_found(sharing) if saved is None else _ok(Status.elsewhere(saved)))

    sharing.read(key, tell)
