"""Pieces that several policies share."""

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    Defer,
    DeferReason,
    Placement,
    PlacementReason,
    Reject,
    RejectReason,
    TurnView,
)


def roomiest(turn: TurnView, cluster: ClusterView, role: Role) -> WorkerId | Defer | Reject:
    """The worker of a role with most free KV tokens, if the turn fits there.

    The one with most free tokens is also the only one that has to be asked: where the turn does
    not fit there, it fits nowhere.
    """
    worker_id = cluster.most_free(role)
    if worker_id is None:
        return Defer(DeferReason.NO_DECODER)
    if turn.needed_tokens <= cluster.free_tokens(worker_id):
        return worker_id
    if turn.needed_tokens > cluster.largest_capacity(role):
        return Reject(RejectReason.TOO_LONG)
    return Defer(DeferReason.NO_KV_ROOM)


def phase_one(
    turn: TurnView, cluster: ClusterView, reason: PlacementReason, *, keeps_kv: bool
) -> Answer:
    """Prefill on the prefiller with least backlog; decode on the pin if it has room, else anew.

    While that prefiller has enough before it the turn waits, room or not: in the worker its order
    could not be changed any more, and KV room would be taken long before it is used.
    """
    prefiller = cluster.least_backlog_prefiller()
    if prefiller is None:
        return Defer(DeferReason.NO_PREFILLER)
    pinned = turn.pinned_decoder
    if pinned is not None and _fits_on_pin(turn, cluster, pinned):
        decoder: WorkerId | Defer | Reject = pinned
    else:
        decoder = roomiest(turn, cluster, Role.DECODE)
    if isinstance(decoder, Reject):
        return decoder
    if not cluster.takes_prompts(prefiller):
        return Defer(DeferReason.PREFILL_BACKLOG)
    if isinstance(decoder, Defer):
        return decoder
    return Placement(decoder, prefiller, reason, keeps_kv)


def _fits_on_pin(turn: TurnView, cluster: ClusterView, decoder: WorkerId) -> bool:
    return turn.needed_tokens - turn.resident_tokens <= cluster.free_tokens(decoder)
