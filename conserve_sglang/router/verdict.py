"""What a worker's error means for a turn: try again, try elsewhere, or tell the client.

SGLang reports errors in several shapes: a status with a JSON body, and in streams an event behind
a head that says 200.
"""

import msgspec

from conserve_sglang.core.local_turn import REFUSAL_STATUS, Refusal, RefusalReason
from conserve_sglang.dispatch import FailureCause
from conserve_sglang.workers.unreadable import UNREADABLE

# A worker that takes no more for now, as SGLang with `--max-queued-requests`: nothing is broken.
BUSY = frozenset({429, 503})
_ERROR_EVENT = b'data: {"error"'
_REFUSED = {
    RefusalReason.PREFIX_MISSING: FailureCause.PREFIX_MISSING,
    RefusalReason.APPEND_TOO_LARGE: FailureCause.APPEND_TOO_LARGE,
}


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _FinishReason(msgspec.Struct):
    type: str = ""
    message: str | None = None
    status_code: int | None = None


class _MetaInfo(msgspec.Struct):
    finish_reason: _FinishReason | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    error: _Error | None = None
    meta_info: _MetaInfo | None = None
    choices: list[_Choice] = []


_event = msgspec.json.Decoder(_Event)


def error_in(event: bytes) -> tuple[int, str] | None:
    """Status and message of a stream's first event if it reports an error; else None."""
    if not event.startswith(_ERROR_EVENT) and b'"abort"' not in event:
        return None
    try:
        # One line: behind it a decoder may tell token ids, of no matter which event.
        parsed = _event.decode(event[5:].partition(b"\n")[0])
    except UNREADABLE:
        return None
    if parsed.error is not None:
        code = parsed.error.code
        return (code if isinstance(code, int) else 400), parsed.error.message
    finish = parsed.meta_info.finish_reason if parsed.meta_info else None
    if finish is not None and finish.type == "abort":
        return finish.status_code or 500, finish.message or ""
    if any(choice.finish_reason == "abort" for choice in parsed.choices):
        # Stock SGLang loses status and message of an abort on its way into a chat stream.
        return 500, "the worker aborted the request"
    return None


def failure_cause(status: int, body: bytes) -> FailureCause | None:
    """Why a decoder's error lets the turn be tried again; None if it would not help."""
    if status in BUSY:
        return FailureCause.DECODER_BUSY
    if status == REFUSAL_STATUS:
        refusal = Refusal.from_message(body.decode("utf-8", "replace"))
        if refusal is not None:
            return _REFUSED[refusal.reason]
    return FailureCause.DECODER_FAILED if status >= 500 else None


def prefill_failure_cause(status: int) -> FailureCause | None:
    """The same of a prefiller's error."""
    if status in BUSY:
        return FailureCause.PREFILLER_BUSY
    return FailureCause.PREFILLER_FAILED if status >= 500 else None
