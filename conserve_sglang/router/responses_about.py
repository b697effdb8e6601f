"""What a request is told about responses that came before it: the history to go on from, or none.

Another tenant's response is told of as one that never was.
"""

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

    def answer(self, question: Question) -> Told:
        """For `HISTORY` chat messages as JSON, with commas between them; or why there are none."""
        if question.subject is Subject.HISTORY:
            return self._history(question)
        name = question.name.decode("utf-8", "replace")
        if not self._store.drop(question.tenant, name):
            return refusal(UNKNOWN_RESPONSE)
        body = {"id": name, "object": "response", "deleted": True}
        return Told(200, _JSON, msgspec.json.encode(body))

    def _history(self, question: Question) -> Told:
        name = question.name.decode("utf-8", "replace")
        found = self._store.history(question.tenant, name)
        if found is None:
            return refusal(not_found(name, _WHY_UNKNOWN))
        if sum(map(len, found)) > self._max_history_bytes:
            return refusal(_TOO_LONG)
        return Told(200, _JSON, b",".join(found))


def not_found(name: str, why: str) -> Problem:
    """There is nothing to go on from."""
    return Problem(
        status=400,
        code="previous_response_not_found",
        message=f"There is no response {name[:_SHOWN]!r} to go on from: {why}."
        " Send the whole input instead.",
        param="previous_response_id",
    )


_TOO_LONG = Problem(
    status=413,
    code="history_too_long",
    message="What was said up to this response is longer than router.max_body_bytes."
    " Send a shorter input by itself.",
    param="previous_response_id",
)
