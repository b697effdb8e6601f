"""Hook on aborts: a queued local request holds no KV, which stock decode mode takes for granted."""

from typing import Any

from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.local_request import needs_extend
from conserve_sglang.plugin.queue_view import as_null_mode, narrowed


def abort_request(inside: Inside, original: Any, scheduler: Any, recv_req: Any) -> Any:
    """End queued local requests as a server without disaggregation ends them, then go on as stock.

    Everything else that stock does on an abort it does twice then; all of it only marks requests.
    """

    def is_queued_local(req: Any) -> bool:
        return needs_extend(req, inside.adapter) and is_meant(recv_req, req.rid)

    if any(is_queued_local(req) for req in scheduler.waiting_queue):
        with narrowed(scheduler, is_queued_local), as_null_mode(scheduler):
            original(scheduler, recv_req)
    return original(scheduler, recv_req)


def is_meant(recv_req: Any, rid: str) -> bool:
    """Whether an abort names this request; SGLang aborts by prefix."""
    return bool(recv_req.abort_all or rid.startswith(recv_req.rid))
