"""Hooks on what a decode server says about itself: what it can do, and its load.

`GET /server_info` carries `internal_states[0]["conserve"]`; a decoder without it lacks the plugin.
Its `incarnation` is another one after each start: what a router remembers of this server's KV holds
for the incarnation it was noted under alone.
`GET /v1/loads`: stock counts no queued prefill on a decode server, since it has none. Queued local
appends are added to `num_waiting_uncached_tokens`, `num_total_tokens` and `num_active_tokens`. No
field there fits the tokens physically resident (idle conversations count as free in
`num_used_tokens`); they are `resident_tokens` in the first.
"""

import uuid
from typing import Any

import conserve_sglang
from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.local_request import needs_extend

CAPABILITY = "conserve"
INCARNATION = uuid.uuid4().hex


def get_internal_state(inside: Inside, result: Any, scheduler: Any, recv_req: Any) -> Any:
    """Say what is served here."""
    total = int(scheduler.max_total_num_tokens)
    available = int(scheduler.token_to_kv_pool_allocator.available_size())
    result.internal_state[CAPABILITY] = {
        "plugin_version": conserve_sglang.__version__,
        "sglang_version": inside.sglang_version,
        "local_prefill": inside.settings.local_prefill,
        "continues": inside.settings.continues,
        "incarnation": INCARNATION,
        "max_total_num_tokens": total,
        "resident_tokens": max(0, total - available),
        "page_size": int(scheduler.page_size),
        "chunked_prefill_size": scheduler.chunked_prefill_size,
        "max_running_requests": scheduler.max_running_requests,
    }
    return result


def get_num_waiting_uncached_tokens(inside: Inside, result: int, inquirer: Any) -> int:
    """Add the prompt tokens that local requests still have to compute."""
    adapter = inside.adapter
    tokens = result
    for req in _queued_local(inside, inquirer):
        tokens += max(0, req.seqlen - adapter.matched_tokens(req))
    chunked = inquirer.get_chunked_req()
    if chunked is not None:
        tokens += max(0, chunked.seqlen - adapter.prefix_tokens(chunked))
    return tokens


def get_loads(inside: Inside, snapshot: Any, inquirer: Any) -> Any:
    """Add the prompts of queued local requests to the tokens this server is bound to hold."""
    pending = sum(req.seqlen for req in _queued_local(inside, inquirer))
    snapshot.num_total_tokens += pending
    snapshot.num_active_tokens += pending
    return snapshot


def _queued_local(inside: Inside, inquirer: Any) -> list[Any]:
    return [req for req in inquirer.get_waiting_queue() if needs_extend(req, inside.adapter)]
