"""What a request is told about responses that came before it: the history to go on from, or none.

Another tenant's response is told of as one that never was.
"""

from collections.abc import Callable

import msgspec

from conserve_sglang.router.ports import Question, Subject, Told, refusal
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.responses_store import ResponseStore

_JSON = b"application/json"
_SHOWN = 100  # of an id that is not known
_WHY_UNKNOWN = "it never was, was not stored, or is kept no longer"
ABOUT_RESPONSES = (Subject.HISTORY, Subject.FORGET)
UNKNOWN_RESPONSE = Problem(
    status=404,
    code="response_not_found",
    message=f"There is no such response: {_WHY_UNKNOWN}.",
)


class ResponseDesk:
    """Answers questions about stored responses. A history is no longer than a request may be."""

    def __init__(self, store: ResponseStore, max_history_bytes: int) -> None:
        self._store = store
        self._max_history_bytes = max_history_bytes

    def ask(self, question: Question, hear: Callable[[Told], None]) -> None:
        """See `About`."""
        hear(self.answer(question))

    def answer(self, question: Question) -> Told:
        """For `HISTORY` chat messages as JSON, with commas between them; or why there are none."""
        if question.subject is Subject.HISTORY:
            return self._history(question)
        name = question.name.decode("utf-8", "replace")
        return deleted(name) if self._store.drop(question.tenant, name) else unknown(question)

    def _history(self, question: Question) -> Told:
        name = question.name.decode("utf-8", "replace")
        found = self._store.history(question.tenant, name)
        if found is None:
            return unknown(question)
        if sum(map(len, found)) > self._max_history_bytes:
            return refusal(TOO_LONG)
        return told_history(found)


def told_history(pieces: list[bytes]) -> Told:
    """Chat messages to go on from."""
    return Told(200, _JSON, b",".join(pieces))


def deleted(name: str) -> Told:
    """A response is forgotten, as its client asked for."""
    body = {"id": name, "object": "response", "deleted": True}
    return Told(200, _JSON, msgspec.json.encode(body))


def unknown(question: Question) -> Told:
    """There is no such response, or not of this tenant."""
    if question.subject is Subject.HISTORY:
        name = question.name.decode("utf-8", "replace")
        return refusal(not_found(name, _WHY_UNKNOWN))
    return refusal(UNKNOWN_RESPONSE)


def not_found(name: str, why: str) -> Problem:
    """There is nothing to go on from."""
    return Problem(
        status=400,
        code="previous_response_not_found",
        message=f"There is no response {name[:_SHOWN]!r} to go on from: {why}."
        " Send the whole input instead.",
        param="previous_response_id",
    )


TOO_LONG = Problem(
    status=413,
    code="history_too_long",
    message="What was said up to this response is longer than router.max_body_bytes."
    " Send a shorter input by itself.",
    param="previous_response_id",
)
