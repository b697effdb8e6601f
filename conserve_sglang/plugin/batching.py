"""Hooks on the step that picks the next batch of a decode server.

Stock takes transferred requests into the running batch and decodes. With local work there is more
to do in one step, in this order:

    transferred requests -> running batch     as stock, but capped, and also while a chunk is open
    last prefill batch   -> running batch     \\
    local requests       -> new prefill batch  | SGLang's own null-mode picker, shown local requests
    else decode                               /  only
"""

from collections.abc import Callable
from typing import Any

from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.local_request import (
    limits_of,
    needs_extend,
    note_refusal,
    noted_refusal,
    refusal_of,
)
from conserve_sglang.plugin.queue_view import narrowed
from conserve_sglang.plugin.refuse import refuse


def get_next_batch(inside: Inside, original: Any, scheduler: Any, running_batch: Any) -> Any:
    """One scheduling step; without local work it is the stock one."""
    if not has_local_work(scheduler, inside):
        return original(scheduler, running_batch=running_batch)
    running_batch = _admit_transferred(scheduler, running_batch)
    if running_batch.is_empty():
        # Memory may have been short while only transfers held it; no one is left to clear this.
        running_batch.batch_is_full = False
    with narrowed(scheduler, _offered(scheduler, inside)):
        plan = scheduler.get_next_batch_to_run(
            running_batch=running_batch, last_batch=scheduler.last_batch
        )
    _end_refused(scheduler, inside)
    return plan


def get_prebuilt_batch(inside: Inside, original: Any, scheduler: Any, running_batch: Any) -> Any:
    """Let stock take only requests that hold KV, and no more than rows will be free."""

    def holds_kv(req: Any) -> bool:
        return not needs_extend(req, inside.adapter)

    room = rows_left(
        max_rows=min(scheduler.req_to_token_pool.size, scheduler.max_running_requests),
        running=running_batch.batch_size(),
        prefilling=len(_prefilling(scheduler)),
    )
    with narrowed(scheduler, holds_kv, limit=room):
        return original(scheduler, running_batch)


def add_one_req(inside: Inside, original: Any, adder: Any, req: Any, *a: Any, **kw: Any) -> Any:
    """Check the limits again where the picker admits a request: its prefix may be gone by now."""
    limits = limits_of(req)
    if limits is not None:
        cached_tokens = inside.adapter.matched_tokens(req)
        refusal = refusal_of(req, limits, cached_tokens=cached_tokens)
        if refusal is not None:
            note_refusal(req, refusal)
            return inside.adapter.passed_over()
    return original(adder, req, *a, **kw)


def has_local_work(scheduler: Any, inside: Inside) -> bool:
    """Whether this step concerns local requests: waiting, in chunks, or prefilled last step."""
    last_batch = scheduler.last_batch
    return (
        scheduler.chunked_req is not None
        or scheduler._pending_chunked_abort_req is not None
        or (last_batch is not None and bool(last_batch.forward_mode.is_extend()))
        or any(needs_extend(req, inside.adapter) for req in scheduler.waiting_queue)
    )


def rows_left(*, max_rows: int, running: int, prefilling: int) -> int:
    """Rows of the running batch that transferred requests may take.

    The last prefill batch is not merged yet, so stock does not count it.
    """
    return max(0, max_rows - running - prefilling)


def _offered(scheduler: Any, inside: Inside) -> Callable[[Any], bool]:
    """Which waiting requests the picker may prefill now.

    None while retracted ones wait: stock stops new transfers then as well, or those would starve.
    """
    if scheduler.disagg_decode_prealloc_queue.retracted_queue:
        return lambda req: False
    return lambda req: needs_extend(req, inside.adapter)


def _prefilling(scheduler: Any) -> list[Any]:
    """Requests in prefill that will join the running batch."""
    last_batch = scheduler.last_batch
    reqs = []
    if last_batch is not None and last_batch.forward_mode.is_extend():
        reqs = [req for req in last_batch.reqs if not req.finished()]
    chunked = scheduler.chunked_req
    if chunked is not None and all(req is not chunked for req in reqs):
        reqs.append(chunked)
    return reqs


def _admit_transferred(scheduler: Any, running_batch: Any) -> Any:
    """Merge transferred requests as stock does, but without insisting that no chunk is open."""
    prebuilt = scheduler.get_new_prebuilt_batch(running_batch)
    if not prebuilt:
        return running_batch
    scheduler.batch_result_processor.process_batch_result_prebuilt(prebuilt)
    prebuilt.filter_batch()
    if prebuilt.is_empty():
        return running_batch
    if running_batch.is_empty():
        return prebuilt
    running_batch.merge_batch(prebuilt)
    return running_batch


def _end_refused(scheduler: Any, inside: Inside) -> None:
    refused = [req for req in scheduler.waiting_queue if noted_refusal(req) is not None]
    if not refused:
        return
    scheduler.waiting_queue = [r for r in scheduler.waiting_queue if noted_refusal(r) is None]
    for req in refused:
        refusal = noted_refusal(req)
        assert refusal is not None
        refuse(inside.adapter, scheduler, req, refusal)
