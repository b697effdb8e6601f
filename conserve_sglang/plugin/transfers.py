"""Counting KV transfers where they are sent: an observer in prefill servers, for tests and demo.

Writes one JSON line per send, `{"room", "rid", "tokens", "last"}`. A long prompt is sent in
several; a transfer is one room. Warm-up and health checks name a host to which SGLang only pretends
to send; they are left out.
"""

import json
from typing import Any

from conserve_sglang.plugin.inside import Inside

PRETENDED_HOST = "2.2.2.2"
"""SGLang's FAKE_BOOTSTRAP_HOST."""


def send_kv_chunk(
    inside: Inside, original: Any, scheduler: Any, req: Any, *a: Any, **kw: Any
) -> Any:
    """Send, and note how far the sent part of the prompt moved."""
    start = req.start_send_idx
    result = original(scheduler, req, *a, **kw)
    is_last = bool(kw.get("last_chunk", a[0] if a else False))
    tokens = req.start_send_idx - start
    path = inside.settings.transfer_log
    if path is None or not is_counted(req.bootstrap_host, tokens=tokens, is_last=is_last):
        return result
    line = {"room": req.bootstrap_room, "rid": req.rid, "tokens": tokens, "last": is_last}
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
    return result


def is_counted(bootstrap_host: str | None, *, tokens: int, is_last: bool) -> bool:
    """Whether a send is one: KV was sent, or at least the end of a request's."""
    return bootstrap_host != PRETENDED_HOST and (tokens > 0 or is_last)
