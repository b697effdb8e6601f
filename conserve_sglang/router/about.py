"""What clients may ask about the router itself, answered from the brain."""

from collections.abc import Callable

import msgspec

from conserve_sglang.router.brain import Brain
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.status import Status
from conserve_sglang.telemetry.prometheus import CONTENT_TYPE, Exporter

_JSON = b"application/json"
UNKNOWN_CONVERSATION = Problem(
    status=404,
    code="conversation_not_found",
    message="There is no such conversation: it never was, or it has ended.",
)


class AboutBrain:
    """Answers at once."""

    def __init__(self, brain: Brain, status: Status, exporter: Exporter) -> None:
        self._brain = brain
        self._status = status
        self._exporter = exporter

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """See `About`."""
        hear(self.answer(question))

    def answer(self, question: Question) -> Told:
        """The answer."""
        if question.subject is Subject.METRICS:
            return Told(200, CONTENT_TYPE.encode(), self._exporter.text())
        if question.subject is Subject.HEALTH:
            status, body = self._status.health()
            return Told(status, _JSON, msgspec.json.encode(body))
        return self._conversation(question)

    def _conversation(self, question: Question) -> Told:
        conversation = self._brain.conversations.find(question.tenant, question.name)
        body = None if conversation is None else self._status.conversation(conversation)
        if conversation is None or body is None:
            problem = UNKNOWN_CONVERSATION
            return Told(problem.status, _JSON, problem.to_json())
        if question.subject is Subject.END:
            self._brain.end_conversation(conversation)
            body = {"id": body["id"], "object": "conversation", "deleted": True}
        return Told(200, _JSON, msgspec.json.encode(body))
