"""Pieces that several policies share."""

from collections.abc import Iterable
from math import inf

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    Defer,
    DeferReason,
    PhaseOneCause,
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
    turn: TurnView,
    cluster: ClusterView,
    reason: PlacementReason,
    *,
    keeps_kv: bool,
    chosen: WorkerId | None = None,
) -> Answer:
    """Prefill on the prefiller with least backlog; decode on the pin if it is a decoder and has
    room, else on `chosen`, which must have room, or on the decoder with most.

    While that prefiller has enough before it the turn waits, room or not: in the worker its order
    could not be changed any more, and KV room would be taken long before it is used.
    """
    prefiller = cluster.least_backlog_prefiller()
    if prefiller is None:
        return Defer(DeferReason.NO_PREFILLER)
    pinned = pinned_to_decoder(turn, cluster)
    if pinned is not None and fits(turn, cluster, pinned):
        decoder: WorkerId | Defer | Reject = pinned
    else:
        decoder = chosen or roomiest(turn, cluster, Role.DECODE)
    if isinstance(decoder, Reject):
        return decoder
    if not cluster.takes_prompts(prefiller):
        return Defer(DeferReason.PREFILL_BACKLOG)
    if isinstance(decoder, Defer):
        return decoder
    return Placement(decoder, prefiller, reason, keeps_kv)


def pinned_to_decoder(turn: TurnView, cluster: ClusterView) -> WorkerId | None:
    """Where the turn's conversation is pinned, if KV can be handed off to there: a prefiller that
    kept a conversation, or a mixed worker, receives none."""
    pinned = turn.pinned_decoder
    is_decoder = pinned is not None and pinned in cluster.workers(Role.DECODE)
    return pinned if is_decoder else None


def fits(turn: TurnView, cluster: ClusterView, worker_id: WorkerId) -> bool:
    """Whether a worker has room for what it lacks of a turn."""
    held = turn.resident_tokens if worker_id == turn.pinned_decoder else 0
    return turn.needed_tokens - held <= cluster.free_tokens(worker_id)


def reason_of(cause: PhaseOneCause | None) -> PlacementReason:
    """Why a turn that is no tail turn runs where it runs."""
    return PlacementReason.FIRST_TURN if cause is None else PlacementReason(cause.value)


def least_running(
    turn: TurnView, cluster: ClusterView, workers: Iterable[WorkerId]
) -> WorkerId | None:
    """Of the workers where a turn fits, the one with fewest turns, then with most free tokens."""
    return min(
        (each for each in workers if fits(turn, cluster, each)),
        key=lambda each: (cluster.num_running(each), -cluster.free_tokens(each)),
        default=None,
    )


def tbt_with_one_more(cluster: ClusterView, worker_id: WorkerId) -> float:
    """The time between two tokens to be expected on a worker that gets one more turn, in seconds.

    What was observed there lately, in proportion to the turns it had then: more than a step
    really grows, which has a floor. 0 while nothing was observed.
    """
    pace = cluster.pace(worker_id)
    if pace is None:
        return 0.0
    more = (cluster.num_running(worker_id) + 1) / max(1.0, pace.num_running)
    return pace.tbt_s * max(1.0, more)


def backlog_s(cluster: ClusterView, worker_id: WorkerId) -> float:
    """How long a worker has to prefill what it was sent, at the rate it was observed to have; 0
    while none was."""
    rate = cluster.prefill_s_per_token(worker_id)
    return 0.0 if rate is None else cluster.pending_tokens(worker_id) * rate


def prefill_rate(cluster: ClusterView, worker_id: WorkerId, like: WorkerId | None) -> float:
    """Seconds a token that a worker is expected to take to prefill: what was observed there, else
    on the worker it is taken to be like; infinite while nothing was."""
    rate = cluster.prefill_s_per_token(worker_id)
    if rate is None and like is not None:
        rate = cluster.prefill_s_per_token(like)
    return inf if rate is None else rate
