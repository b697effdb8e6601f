"""What clients may ask about the router itself, answered from the brain."""

from collections.abc import Callable

import msgspec

from conserve_sglang.router.brain import Brain
from conserve_sglang.router.place import Placements
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.status import Status

_JSON = b"application/json"
UNKNOWN_CONVERSATION = Problem(
    status=404,
    code="conversation_not_found",
    message="There is no such conversation: it never was, or it has ended.",
)


class AboutBrain:
    """Answers at once; only a place may have to be waited for."""

    def __init__(self, brain: Brain, status: Status, placements: Placements) -> None:
        self._brain = brain
        self._status = status
        self._placements = placements

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """See `About`."""
        if question.subject is Subject.PLACE:
            self._placements.ask(question, hear)
        elif question.subject is Subject.PLACED:
            self._placements.report(question, hear)
        else:
            hear(self._answer(question))

    def _answer(self, question: Question) -> Told:
        if question.subject in (Subject.HEALTH, Subject.STATUS):
            status, body = self._status.health(is_brief=question.subject is Subject.STATUS)
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
