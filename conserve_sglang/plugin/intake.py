"""Hooks on the way in: a marked request passes the gate, and is queued for prefill or refused."""

import logging
from typing import Any

from conserve_sglang.plugin.inside import Inside
from conserve_sglang.plugin.local_request import (
    is_marked_local,
    limits_of,
    refusal_of,
    starts_over,
)
from conserve_sglang.plugin.queue_view import as_null_mode, park_newcomer
from conserve_sglang.plugin.refuse import refuse

logger = logging.getLogger(__name__)


def handle_generate_request(
    inside: Inside, original: Any, scheduler: Any, recv_req: Any, *args: Any, **kwargs: Any
) -> Any:
    """Take a marked request in as a server without disaggregation does; SGLang answers 400."""
    if not is_marked_local(recv_req):
        return original(scheduler, recv_req, *args, **kwargs)
    with as_null_mode(scheduler):
        return original(scheduler, recv_req, *args, **kwargs)


def add_request_to_queue(
    inside: Inside, original: Any, scheduler: Any, req: Any, is_retracted: bool = False
) -> Any:
    """Queue a local request for prefill here: new, grammar ready, or to be started over."""
    limits = limits_of(req)
    if limits is None or not starts_over(req, is_retracted=is_retracted):
        return original(scheduler, req, is_retracted=is_retracted)
    if is_retracted:
        logger.info("Local turn %s was retracted before its first token; it starts over.", req.rid)
        inside.adapter.drop_kv_backup(scheduler, req)
    cached_tokens = inside.adapter.cached_tokens(scheduler, req)
    refusal = refusal_of(req, limits, cached_tokens=cached_tokens)
    if refusal is not None:
        refuse(inside.adapter, scheduler, req, refusal)
        return None
    with as_null_mode(scheduler):
        original(scheduler, req, is_retracted=is_retracted)
    park_newcomer(scheduler, req)
    return None


def get_item(original: Any, batch: Any, index: int) -> Any:
    """Keep the mark when SGLang splits a request (n > 1, a list of prompts); it forgets it."""
    part = original(batch, index)
    part.routing_key = batch.routing_key
    return part
