"""ConServe with roles that bend: no worker idles while another has too much before it.

Whether a phase 1 goes to a prefiller or is *spilled*, that is prefilled by the decoder that will
decode it, is a comparison of two times, both made of what was observed:

    what a spill saves    the turn's own wait for the prefiller, and one prefill less before each
                          turn that waits behind it and that the decoders have room for
    what it costs         a stall of one prefill for each turn that the decoder is decoding, and
                          the turn's own wait for prefills there

A wait is prompt tokens not prefilled yet times the worker's observed seconds a token. While
nothing was observed, nothing is spilled. An idle prefiller so gets every phase 1, and an idle
decoder takes one as soon as the prefiller has any before it. On mixed workers a conversation stays
where it begins: where that costs least.

The same price says how long KV is kept at rest while others wait for room: until they have waited
as long as prefilling it again would hold others up (`policy.retention`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    TurnView,
)
from conserve_sglang.policy.parts import (
    fits,
    phase_one,
    pinned_to_decoder,
    prefill_rate,
    reason_of,
    roomiest,
    tbt_with_one_more,
)
from conserve_sglang.policy.retention import BY_HISTORY, ByCost, Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkConservingParams:
    """`max_local_append_tokens`: shorter appends are always prefilled on the decoder.
    `stall_weight`: how much more a second of a stalled answer counts than a second waited for a
    first token: 2, since a stall comes late twice, in the time between tokens and in that to the
    conversation's first effective token, and a wait once. `by_history`: each conversation is kept
    the room, and for the time, that it has shown to need (`policy.retention`).
    `late_after_s`: a turn 1 that has waited longer goes behind its tenant's others, which may still
    be in time; None: first come, first served."""

    max_local_append_tokens: int = 2048
    stall_weight: float = 2.0
    by_history: bool = False
    late_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_local_append_tokens < 1:
            raise ValueError("max_local_append_tokens must be at least 1")
        if self.stall_weight <= 0:
            raise ValueError("stall_weight must be positive")
        if self.late_after_s is not None and self.late_after_s <= 0:
            raise ValueError("late_after_s must be positive, or None")


class WorkConserving:
    """`conserve`, but a phase 1 is spilled to a decoder when that saves more than it costs."""

    __slots__ = ("_max_append", "_stall_weight", "late_after_s", "retention")

    def __init__(self, params: WorkConservingParams) -> None:
        self._max_append = params.max_local_append_tokens
        self._stall_weight = params.stall_weight
        self.late_after_s = inf if params.late_after_s is None else params.late_after_s
        self.retention: Retention = BY_HISTORY if params.by_history else ByCost(params.stall_weight)

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        cause, pinned = turn.phase_one_cause, turn.pinned_decoder
        if cause is None and pinned is not None:
            if turn.new_tokens < self._max_append:
                limit = self._max_append - 1
                return Placement(pinned, None, PlacementReason.PINNED, True, limit)
            if pinned in cluster.workers(Role.PREFILL) or pinned in cluster.workers(Role.MIXED):
                return Placement(pinned, None, PlacementReason.PINNED, True)
            cause = PhaseOneCause.LARGE_APPEND
        reason = reason_of(cause)
        if cluster.workers(Role.MIXED) and not _has_pair(cluster):
            return self._whole(turn, cluster, reason)
        return self._kept(turn, cluster, reason) or self._apart(turn, cluster, reason)

    def _apart(self, turn: TurnView, cluster: ClusterView, reason: PlacementReason) -> Answer:
        """The turn through a prefiller, unless it is spilled."""
        answer = phase_one(turn, cluster, reason, keeps_kv=True)
        if isinstance(answer, Defer) and answer.reason is DeferReason.NO_KV_ROOM:
            return self._squeezed(turn, cluster, reason) or answer
        if isinstance(answer, Placement):
            where = answer.prefiller
        elif isinstance(answer, Defer) and answer.reason is DeferReason.PREFILL_BACKLOG:
            where = cluster.least_backlog_prefiller()
        else:
            return answer
        spilled = None if where is None else self._spilled(turn, cluster, where)
        return answer if spilled is None else spilled

    def _whole(self, turn: TurnView, cluster: ClusterView, reason: PlacementReason) -> Answer:
        """The turn on a mixed worker, where its conversation stays: where it costs least."""
        found = roomiest(turn, cluster, Role.MIXED)
        if isinstance(found, Defer | Reject):
            return found
        able = [each for each in cluster.workers(Role.MIXED) if fits(turn, cluster, each)]
        known = next((each for each in able if cluster.prefill_s_per_token(each)), None)
        best = min(
            able,
            key=lambda each: (
                self._cost(turn, cluster, each, _rate_or(cluster, each, known)),
                -cluster.free_tokens(each),
            ),
        )
        return Placement(best, None, reason, True)

    def _kept(
        self, turn: TurnView, cluster: ClusterView, reason: PlacementReason
    ) -> Placement | None:
        """The turn on a mixed worker, where its answers would come sooner than on a decoder."""
        if turn.pinned_decoder is not None:
            return None
        for each in cluster.workers(Role.MIXED):
            if _is_faster(turn, cluster, each):
                return Placement(each, None, reason, True)
        return None

    def _squeezed(
        self, turn: TurnView, cluster: ClusterView, reason: PlacementReason
    ) -> Placement | None:
        """The turn on a mixed worker, where no decoder has room."""
        answer = self._whole(turn, cluster, reason)
        return answer if isinstance(answer, Placement) else None

    def _spilled(
        self, turn: TurnView, cluster: ClusterView, prefiller: WorkerId
    ) -> Placement | None:
        rate = cluster.prefill_s_per_token(prefiller)
        if rate is None:
            return None
        own_s = turn.new_tokens * rate
        wait_s = cluster.pending_tokens(prefiller) * rate
        stall_s = self._stall_weight * own_s * cluster.num_running(prefiller)
        saved_s = wait_s + stall_s + own_s * _num_helped(turn, cluster)
        if saved_s <= 0:
            return None
        decoder, cost_s = self._least_stalled(turn, cluster, prefiller)
        if decoder is None or saved_s <= cost_s:
            return None
        return Placement(decoder, None, PlacementReason.SPILLED, True)

    def _least_stalled(
        self, turn: TurnView, cluster: ClusterView, prefiller: WorkerId
    ) -> tuple[WorkerId | None, float]:
        """The decoder where prefilling the turn costs least, and what it costs in seconds; of a
        pinned conversation the pin, since any other decoder would have to begin at the front."""
        pinned = pinned_to_decoder(turn, cluster)
        holds_it = pinned is not None and fits(turn, cluster, pinned)
        candidates: Sequence[WorkerId] = (pinned,) if holds_it and pinned else ()
        best: WorkerId | None = None
        least_s = inf
        for each in candidates or cluster.workers(Role.DECODE):
            if fits(turn, cluster, each):
                rate = prefill_rate(cluster, each, prefiller)
                cost_s = self._cost(turn, cluster, each, rate)
                if cost_s < least_s:
                    best, least_s = each, cost_s
        return best, least_s

    def _cost(self, turn: TurnView, cluster: ClusterView, worker: WorkerId, rate: float) -> float:
        """What prefilling a turn where it is decoded costs, in seconds: its own wait for prefills
        there, and a stall of each turn that is decoded there."""
        tokens = turn.new_tokens if worker == turn.pinned_decoder else turn.input_tokens
        stalled = self._stall_weight * tokens * cluster.num_running(worker)
        return rate * (cluster.pending_tokens(worker) + stalled)


class WorkConservingTails(WorkConserving):
    """The same, and a conversation stays on its prefiller where its answers would come sooner.

    That is: nothing waits to be prefilled there, it has room, and by the observed times between
    tokens one turn more on it is served faster than on the fastest decoder.
    """

    __slots__ = ()

    decodes_on_prefillers = True

    def _kept(
        self, turn: TurnView, cluster: ClusterView, reason: PlacementReason
    ) -> Placement | None:
        prefiller = cluster.least_backlog_prefiller()
        if turn.pinned_decoder is not None or prefiller is None:
            return None
        if not _is_faster(turn, cluster, prefiller):
            return super()._kept(turn, cluster, reason)
        return Placement(prefiller, None, PlacementReason.KEPT_ON_PREFILLER, True)

    def _squeezed(
        self, turn: TurnView, cluster: ClusterView, reason: PlacementReason
    ) -> Placement | None:
        able = [
            each
            for each in cluster.workers(Role.PREFILL)
            if turn.needed_tokens <= cluster.free_tokens(each)
            and cluster.pending_tokens(each) <= turn.input_tokens
        ]
        if not able:
            return super()._squeezed(turn, cluster, reason)
        least = min(able, key=cluster.pending_tokens)
        return Placement(least, None, PlacementReason.KEPT_ON_PREFILLER, True)


def _has_pair(cluster: ClusterView) -> bool:
    return bool(cluster.workers(Role.PREFILL) and cluster.workers(Role.DECODE))


def _is_faster(turn: TurnView, cluster: ClusterView, worker: WorkerId) -> bool:
    """Whether a worker that is no decoder has room for a turn and nothing to prefill, and by the
    observed times between tokens would answer it faster than any decoder with room."""
    if cluster.pending_tokens(worker) or cluster.num_waiting():
        return False
    if turn.needed_tokens > cluster.free_tokens(worker):
        return False
    decoders = [each for each in cluster.workers(Role.DECODE) if fits(turn, cluster, each)]
    if cluster.num_running(worker) == 0 and all(map(cluster.num_running, decoders)):
        return True
    there = min((tbt_with_one_more(cluster, each) for each in decoders), default=inf)
    return tbt_with_one_more(cluster, worker) < there


def _rate_or(cluster: ClusterView, worker: WorkerId, known: WorkerId | None) -> float:
    """A worker's prefill rate; else that of a worker that has one; else 1, the same for all."""
    rate = prefill_rate(cluster, worker, known)
    return 1.0 if rate == inf else rate


def _num_helped(turn: TurnView, cluster: ClusterView) -> int:
    """How many of the turns that wait behind have one prefill less before them, if this one is
    prefilled elsewhere: as many as the decoders have room for beside it. The others wait for that.
    """
    waiting = cluster.num_waiting()
    if not waiting:
        return 0
    room = sum(cluster.free_tokens(each) for each in cluster.workers(Role.DECODE))
    return min(waiting, max(0, room // max(1, turn.needed_tokens) - 1))
