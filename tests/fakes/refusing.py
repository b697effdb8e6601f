"""How a fake worker says that it does not take a turn."""

import json
from typing import Any

QUEUE_IS_FULL = "The request queue is full."
"""SGLang's word for it, with `--max-queued-requests`; its status is 503."""


def status_of(message: str) -> int:
    """The status SGLang or its plugin gives such a refusal."""
    if message == QUEUE_IS_FULL:
        return 503
    return 409 if message.startswith("conserve") else 400


def as_event(path: str, message: str, *, tells: bool) -> str:
    """The event by which a stream ends at once; `tells`: with the mark of told token ids."""
    status = status_of(message)
    if path == "/generate":
        reason = {"type": "abort", "message": message, "status_code": status}
        event: Any = {"text": "", "output_ids": [], "meta_info": {"finish_reason": reason}}
    else:
        event = {"error": {"object": "error", "message": message, "code": status}}
    mark = ":=\n" if tells else ""  # no event is left out, not even a refusal
    return f"data: {json.dumps(event, separators=(',', ':'))}\n{mark}\n"
