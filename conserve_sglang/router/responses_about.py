"""What a client is told about responses that came before: the history to go on from, the response
object, what it was given; or that there is none.

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
LONG_ANSWERS = (Subject.HISTORY, Subject.RESPONSE, Subject.ITEMS)
ABOUT_RESPONSES = (*LONG_ANSWERS, Subject.FORGET)
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
        """For `HISTORY` and `ITEMS` see `told_history`; or why there is nothing to tell."""
        name = question.name.decode("utf-8", "replace")
        if question.subject is Subject.FORGET:
            return deleted(name) if self._store.drop(question.tenant, name) else unknown(question)
        if question.subject is Subject.RESPONSE:
            return told_object(self._store.object_of(question.tenant, name))
        found = self._store.chain(question.tenant, name)
        if found is None:
            return unknown(question)
        if sum(len(messages) for _, messages in found) > self._max_history_bytes:
            return refusal(TOO_LONG)
        return told_history(question, found)


def told_history(question: Question, chain: list[tuple[str, bytes]]) -> Told:
    """Chat messages with commas between them, to go on from; as `ITEMS` a JSON list of what each
    response added, with its id: `[["resp_…", [message, …]], …]`."""
    if question.subject is Subject.HISTORY:
        return Told(200, _JSON, b",".join(messages for _, messages in chain))
    parts = (b"[%b,[%b]]" % (msgspec.json.encode(name), messages) for name, messages in chain)
    return Told(200, _JSON, b"[" + b",".join(parts) + b"]")


def told_object(response: bytes | None) -> Told:
    """A response object as its client got it; or that it is not known."""
    return Told(200, _JSON, response) if response else refusal(UNKNOWN_RESPONSE)


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
