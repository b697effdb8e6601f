"""Which requests are local, and which of them must still be prefilled here.

In stock decode mode every request in `waiting_queue` already holds KV: it was transferred, or
restored after a retraction. A local request joins that queue *without* KV. So the kind of a waiting
request is read off two facts: does it carry the router's mark, and does it hold KV.

    marked, no KV      to be prefilled here, by the null-mode batch picker
    marked, with KV    retracted after its first token and restored: the stock path takes it
    not marked         transferred: the stock path takes it
"""

from typing import Any

from conserve_sglang.core.local_turn import LocalLimits, Refusal
from conserve_sglang.plugin.adapter import Adapter

_LIMITS = "conserve_limits"
_REFUSAL = "conserve_refusal"


def limits_of(req: Any) -> LocalLimits | None:
    """The limits of a local request; None for one that is served by transfer.

    A request with a bootstrap room is never local, whatever mark it carries.
    """
    known = req.__dict__
    if _LIMITS not in known:
        local = req.bootstrap_room is None
        known[_LIMITS] = LocalLimits.from_routing_key(req.routing_key) if local else None
    limits: LocalLimits | None = known[_LIMITS]
    return limits


def is_marked_local(recv_req: Any) -> bool:
    """Whether a request that just came in is one the router meant for this decoder alone."""
    return (
        recv_req.bootstrap_room is None
        and recv_req.session_params is None
        and LocalLimits.from_routing_key(recv_req.routing_key) is not None
    )


def needs_extend(req: Any, adapter: Adapter) -> bool:
    """Whether a waiting request is still to be prefilled here."""
    return limits_of(req) is not None and not adapter.holds_kv(req)


def starts_over(req: Any, *, is_retracted: bool) -> bool:
    """Whether a request bound for the queue has no token yet, so that it is prefilled from scratch.

    A retracted request with tokens is restored from its backup instead. One without was retracted
    while its prefill was still in flight: stock decode knows no such request and would look for the
    last of its tokens.
    """
    return not is_retracted or len(req.output_ids) == 0


def refusal_of(req: Any, limits: LocalLimits, *, cached_tokens: int) -> Refusal | None:
    """The refusal due now; none for a request that is already bound to end with an error."""
    if req.to_finish is not None:
        return None
    return limits.refusal(prompt_tokens=len(req.origin_input_ids), cached_tokens=cached_tokens)


def note_refusal(req: Any, refusal: Refusal) -> None:
    """Mark a queued request for refusal once the batch picker is done with the queue."""
    setattr(req, _REFUSAL, refusal)


def noted_refusal(req: Any) -> Refusal | None:
    """What `note_refusal` noted."""
    return getattr(req, _REFUSAL, None)
