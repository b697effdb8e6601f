"""How the fake worker tells the ids of a stream, and goes on with one that another began."""

import json
from itertools import count
from typing import Any

from conserve_sglang.core.continuation import TELL_HEADER, Continuation, told_step

_answers = count(1)


def as_sent(
    events: list[dict[str, Any]], pieces: list[str], body: dict[str, Any], headers: dict[str, str]
) -> list[str]:
    """The events of a stream as they are written: told where asked for, those sent left out."""
    continuation = Continuation.from_rid(body.get("rid"))
    number = next(_answers)
    answer_id, created = f"answer-{number}", 1_000_000 + number
    if continuation is not None:
        answer_id, created = continuation.answer_id, continuation.created
        told_so_far = bytes(continuation.token_ids).decode()
        assert "".join(pieces).startswith(told_so_far), "goes on with another answer"
    is_native = "meta_info" in events[0]
    tells = TELL_HEADER in headers and not is_native and (body.get("n") or 1) == 1
    sent = []
    for at, event in enumerate(events):
        if is_native:
            event["meta_info"]["id"] = answer_id
            if continuation and len(event["output_ids"]) <= len(continuation.token_ids):
                continue
        elif continuation and at < continuation.num_events:
            continue
        named = event if is_native else {**event, "id": answer_id, "created": created}
        line = f"data: {json.dumps(named, separators=(',', ':'))}\n"
        if tells:
            ids = list(pieces[at].encode()) if at < len(pieces) else []
            line += f":={told_step(ids) if ids else ''}\n"
        sent.append(line + "\n")
    return sent
