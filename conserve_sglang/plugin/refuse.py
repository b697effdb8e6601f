"""Refusing a local turn, from the scheduler that decides to the HTTP answer that says so.

What the router sees; the text is `Refusal.to_message()`, and both supported versions are alike:

    endpoint               stream   HTTP   where the text is
    /generate              no       409    `message` of the JSON error
    /v1/chat/completions   no       409    `message` of the JSON error
    /v1/completions        no       409    `message` of the JSON error
    /generate              yes      200    first event, `meta_info.finish_reason.message`
    /v1/chat/completions   yes      200    first event, `error.message`, code 409
    /v1/completions        yes      200    first event, `error.message`, code 409

A refused stream has no other event but `[DONE]` behind the first. Two things of SGLang need help:
0.5.17 turns only 400, 500 and 503 into an HTTP status; and with SGLANG_USE_PICKLE_IPC=0 the status
loses its type between the processes, and the OpenAI streams then end as if nothing were wrong.
"""

from http import HTTPStatus
from typing import Any

from conserve_sglang.core.local_turn import REFUSAL_STATUS, Refusal
from conserve_sglang.plugin.adapter import Adapter

_STATUS = HTTPStatus(REFUSAL_STATUS)


def refuse(adapter: Adapter, scheduler: Any, req: Any, refusal: Refusal) -> None:
    """End a request that never ran with a refusal."""
    adapter.end_refused(scheduler, req, refusal.to_message(), _STATUS)


async def handle_abort_finish_reason(
    original: Any, manager: Any, out: Any, state: Any, is_stream: bool
) -> Any:
    """Give a refusal its status: to an HTTP error, or to the error event of a stream."""
    reason = out["meta_info"]["finish_reason"]
    if Refusal.from_message(str(reason.get("message"))) is None:
        return await original(manager, out, state, is_stream)
    # 503 is the one status that every supported version turns into an HTTP error as it is.
    reason["status_code"] = HTTPStatus.SERVICE_UNAVAILABLE
    try:
        return await original(manager, out, state, is_stream)
    except Exception as error:
        if getattr(error, "status_code", None) == HTTPStatus.SERVICE_UNAVAILABLE:
            error.status_code = REFUSAL_STATUS  # type: ignore[attr-defined]  # an HTTPException
        raise
    finally:
        reason["status_code"] = _STATUS
