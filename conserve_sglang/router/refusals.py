"""What a request is refused with for its method, its path or a header of its own."""

from collections.abc import Iterable

from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.problem import Problem


def wrong_method(method: str, allow: str) -> Problem:
    """What a request with a method that is not served there is answered with."""
    message = f"The method {method} is not served here. Use {allow}."
    return Problem(status=405, code="method_not_allowed", message=message, allow=allow)


def deadline_s(milliseconds: bytes) -> float:
    """The value of the header that says how long a turn may wait, in seconds; raises `BadBody`."""
    if not milliseconds.isdigit() or len(milliseconds) > 9 or int(milliseconds) == 0:
        message = (
            "The header x-conserve-deadline-ms must be a whole number of milliseconds above 0."
        )
        raise BadBody(Problem(status=400, code="bad_deadline", message=message))
    return int(milliseconds) / 1000


def unknown_path(path: bytes, posted: Iterable[bytes]) -> Problem:
    """Nothing is served at a path; `posted` are those where POST is."""
    shown = path[:200].decode("latin-1")
    served = ", ".join(each.decode() for each in posted)
    message = (
        f"There is nothing at {shown}. POST is served at {served}; GET at /v1/models,"
        " /v1/conversations/ID, /health, /ready and /live; DELETE at /v1/conversations/ID and"
        " /v1/responses/ID; metrics on the control port. The workers' other"
        " endpoints, embeddings and rerank among them, belong to no conversation: ask a worker"
        " itself."
    )
    return Problem(status=404, code="unknown_path", message=message)
