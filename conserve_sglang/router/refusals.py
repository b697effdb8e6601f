"""What a request is refused with for its method, its path or a header of its own."""

from collections.abc import Iterable
from math import inf

from conserve_sglang.router.headers import DEADLINE_HEADER, TIMEOUT_HEADER
from conserve_sglang.router.payload import BadBody
from conserve_sglang.router.problem import Problem


def wrong_method(method: str, allow: str) -> Problem:
    """What a request with a method that is not served there is answered with."""
    message = f"The method {method} is not served here. Use {allow}."
    return Problem(status=405, code="method_not_allowed", message=message, allow=allow)


def deadline_s(milliseconds: bytes) -> float:
    """The value of the header that says how long a turn may wait, in seconds; raises `BadBody`."""
    return _seconds(milliseconds, DEADLINE_HEADER, "bad_deadline")


def timeout_s(milliseconds: bytes | None, most_s: float | None) -> float:
    """How long a turn may take in all, in seconds: the tier map's bound, or less where its client
    says so; one of them is given. Raises `BadBody`."""
    if milliseconds is None:
        return inf if most_s is None else most_s
    asked_s = _seconds(milliseconds, TIMEOUT_HEADER, "bad_timeout")
    return asked_s if most_s is None else min(asked_s, most_s)


def _seconds(milliseconds: bytes, header: bytes, code: str) -> float:
    if not milliseconds.isdigit() or len(milliseconds) > 9 or int(milliseconds) == 0:
        message = f"The header {header.decode()} must be a whole number of milliseconds above 0."
        raise BadBody(Problem(status=400, code=code, message=message))
    return int(milliseconds) / 1000


def unknown_path(path: bytes, posted: Iterable[bytes]) -> Problem:
    """Nothing is served at a path; `posted` are those where POST is."""
    shown = path[:200].decode("latin-1")
    served = ", ".join(each.decode() for each in posted)
    message = (
        f"There is nothing at {shown}. POST is served at {served}; GET at /v1/models,"
        " /v1/conversations/ID, /v1/responses/ID, /health, /ready and /live; DELETE at"
        " /v1/conversations/ID and /v1/responses/ID; metrics on the control port. The workers'"
        " other endpoints, embeddings and rerank among them, belong to no conversation: ask a"
        " worker itself."
    )
    return Problem(status=404, code="unknown_path", message=message)
