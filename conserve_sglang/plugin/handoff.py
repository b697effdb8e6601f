"""Hook on the arrival of KV: where a continued request's prompt ends and its answer begins.

To prefill, reserve and transfer, the tokens sent so far are part of the prompt. Once their KV is
here the request is what it was at the decoder that was lost: the prompt, and an answer of so many
tokens. What is counted and matched over the answer (its length, stop strings, the grammar,
reasoning, the detokenizer's offset) then goes on by itself.
"""

from array import array
from http import HTTPStatus
from importlib import import_module
from typing import Any

from conserve_sglang.core.continuation import Handoff
from conserve_sglang.plugin.inside import Inside

_HANDOFF = "conserve_handoff"


def commit_transfer(inside: Inside, original: Any, queue: Any, decode_req: Any) -> Any:
    """Take the transfer as stock does, then put a continued request back where it was."""
    req = decode_req.req
    handoff = handoff_of(req)
    num_before = len(req.output_ids)
    result = original(queue, decode_req)
    if handoff is not None and len(req.output_ids) == num_before + 1:
        setattr(req, _HANDOFF, None)  # once
        scheduler = queue.scheduler
        put_back(req, handoff, most_new_tokens(scheduler, req, handoff))
        _follow_grammar(req)
        count = scheduler.batch_result_processor._maybe_update_reasoning_tokens
        count(req, list(req.output_ids))
    return result


def handoff_of(req: Any) -> Handoff | None:
    """What is known of a request that goes on; None for any other, and once it does."""
    known = req.__dict__
    if _HANDOFF not in known:
        known[_HANDOFF] = Handoff.from_routing_key(req.routing_key)
    handoff: Handoff | None = known[_HANDOFF]
    return handoff


def most_new_tokens(scheduler: Any, req: Any, handoff: Handoff) -> int:
    """How long the answer may become, as `init_req_max_new_tokens` says of the prompt alone."""
    num_prompt = len(req.origin_input_ids) - (handoff.num_sent - 1)
    limits = (
        handoff.max_new_tokens,
        getattr(scheduler, "max_new_tokens_limit", None) or None,
        scheduler.max_req_len - num_prompt - 1,
    )
    return max(0, min(limit for limit in limits if limit is not None))


def put_back(req: Any, handoff: Handoff, max_new_tokens: int) -> None:
    """Move the tokens sent so far from the prompt to the answer.

    The token that came with the KV was sampled without regard to the answer so far; it gives
    way to the one that was sent.
    """
    num_moved = handoff.num_sent - 1
    begin = len(req.origin_input_ids) - num_moved
    sent = array("q", req.origin_input_ids[begin:])
    sent.append(handoff.last_id)
    req.origin_input_ids = req.origin_input_ids[:begin]
    req.origin_input_ids_unpadded = req.origin_input_ids_unpadded[:begin]
    req.output_ids = sent
    req.sampling_params.max_new_tokens = max_new_tokens
    req.reasoning_tokens = 0
    req._is_reasoning_over = False
    req._think_end_match_len = 0
    req.expected_kv_checksum = 0  # it was made over the prompt as it was transferred


def _follow_grammar(req: Any) -> None:
    """Lead the grammar along the answer; stock leads a fresh one over the last token itself."""
    grammar = req.grammar
    if grammar is None:
        return
    try:
        for token_id in req.output_ids[:-1]:
            grammar.accept_token(token_id)
        if grammar.current_token is not None:
            grammar.accept_token(req.output_ids[-1])
    except ValueError as error:
        abort = import_module("sglang.srt.managers.schedule_batch").FINISH_ABORT
        message = f"This answer cannot be continued: it left its grammar ({error})."
        req.to_finish = abort(message, HTTPStatus.INTERNAL_SERVER_ERROR)
