"""Errors as clients see them: OpenAI's shape, a status, and a message that says what to do."""

from dataclasses import dataclass, replace
from math import ceil

import msgspec

from conserve_sglang.policy.api import RejectReason
from conserve_sglang.workers.unreadable import UNREADABLE

WORKER_BUSY_RETRY_S = 5
REASONS = {
    100: "Continue",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request is not served. `retry_after_s` is set where trying again makes sense;
    `is_final` where it does not, though the status alone would have official clients do it."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    allow: str | None = None
    challenge: str | None = None
    is_final: bool = False

    def to_json(self) -> bytes:
        """The body: `{"error": {"message", "type", "param", "code"}}`."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def to_event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"data: " + self.to_json() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside the framing."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        if self.is_final:
            headers.append(
                (b"x-should-retry", b"false")
            )  # read by OpenAI's and Anthropic's clients
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode()))
        if self.challenge is not None:
            headers.append((b"www-authenticate", self.challenge.encode()))
        return headers


def _no_worker(lack: str) -> Problem:
    message = f"{lack}. Try again; GET /health on the router's control port says which are not up."
    return Problem(status=503, code="no_worker", message=message, retry_after_s=5)


NO_WORKER = _no_worker("No worker is up")
NO_DECODER = _no_worker("No worker that can decode takes turns, nor did while this one could wait")
NO_PREFILLER = _no_worker(
    "No worker that can prefill takes turns, nor did while this one could wait"
)
OWN_FAULT = Problem(
    status=500,
    code="router_error",
    message="The router failed on this request; its log says how. Other requests go on.",
)
STOPPING = Problem(
    status=503,
    code="router_stopping",
    message="The router is stopping, so this request was not answered, or not to its end. Send it"
    " again: to another router, or to this one when it is back.",
    retry_after_s=5,
)
SILENT = Problem(
    status=503,
    code="router_busy",
    message="One of the router's processes did not answer in time. Try again; the router's log"
    " says if one has ended.",
    retry_after_s=1,
)
BROKEN_OFF = Problem(
    status=502,
    code="answer_broken_off",
    message="The worker broke off in the middle of this answer. Send the request again.",
)
TURN_TIMEOUT = Problem(
    status=504,
    code="turn_timeout",
    message="This turn took longer than it may (router.turn_timeout_s, or the header"
    " x-conserve-timeout-ms) and was stopped. Its conversation can go on: ask for a shorter answer,"
    " or allow more time.",
    is_final=True,
)
ENDED = Problem(
    status=409,
    code="conversation_ended",
    message="The conversation was ended while this turn was under way.",
)
NOT_TRUSTED = Problem(
    status=403,
    code="may_not_place",
    message="Only tenants with `may_place: true` in the router's key file may ask for places.",
)
_REJECTED = {
    RejectReason.TOO_LONG: Problem(
        status=400,
        code="context_length_exceeded",
        message="The prompt is longer than any decoder can hold. Shorten it.",
    ),
    RejectReason.QUEUE_FULL: Problem(
        status=429,
        code="queue_full",
        message="Too many turns are waiting for a worker. Try again when Retry-After says.",
        retry_after_s=1,
    ),
    RejectReason.QUEUE_TIMEOUT: Problem(
        status=503,
        code="queue_timeout",
        message="No worker had room for this turn before its deadline."
        " Try again when Retry-After says.",
        retry_after_s=1,
    ),
    RejectReason.NO_DECODER: NO_DECODER,
    RejectReason.NO_PREFILLER: NO_PREFILLER,
    RejectReason.RETRIES_SPENT: Problem(
        status=502,
        code="workers_failed",
        message="Every attempt to serve this turn failed at its workers. Try again;"
        " the router's log says what each attempt met.",
    ),
    RejectReason.CONVERSATION_ENDED: ENDED,
    RejectReason.TOO_MANY_CONVERSATIONS: Problem(
        status=429,
        code="too_many_conversations",
        message="Too many conversations have a turn under way, so no new one can begin."
        " Try again when one of them is answered.",
        retry_after_s=1,
    ),
    RejectReason.WORKERS_BUSY: Problem(
        status=503,
        code="worker_busy",
        message="The worker is busy, and no other can take this turn now."
        " Try again when Retry-After says.",
        retry_after_s=WORKER_BUSY_RETRY_S,
    ),
}


def rejection(reason: RejectReason, retry_after_s: float | None = None) -> Problem:
    """What a rejected turn is answered with. `retry_after_s` as observed, if it was."""
    problem = _REJECTED[reason]
    return problem if retry_after_s is None else replace(problem, retry_after_s=ceil(retry_after_s))


class _Detail(msgspec.Struct):
    message: str = ""
    code: int | str | None = None
    param: str | None = None


class _WorkerBody(msgspec.Struct):
    error: _Detail | str | None = None
    message: str | None = None
    detail: msgspec.Raw = msgspec.Raw()


_worker_body = msgspec.json.Decoder(_WorkerBody)


def from_worker(status: int, body: bytes) -> Problem:
    """A worker's own refusal of a request, brought into OpenAI's shape."""
    message = ""
    param = None
    try:
        parsed = _worker_body.decode(body)
    except UNREADABLE:
        message = body[:2000].decode("utf-8", "replace")
    else:
        if isinstance(parsed.error, _Detail):
            message, param = parsed.error.message, parsed.error.param
        else:
            message = parsed.message or parsed.error or ""
        if not message:
            message = bytes(parsed.detail).decode("utf-8", "replace")
    message = message.partition("\n\n  File ")[0]  # where in SGLang it was found helps nobody
    code = "worker_refused"
    if "context length" in message or "longer than the model" in message:
        code = "context_length_exceeded"
        message += " Shorten the prompt or ask for fewer tokens."
    is_busy = status in (429, 503)
    if is_busy:
        code = "worker_busy"
    return Problem(
        status=status,
        code=code,
        message=message or f"The worker answered {status} without saying why.",
        param=param,
        retry_after_s=WORKER_BUSY_RETRY_S if is_busy else None,
    )
