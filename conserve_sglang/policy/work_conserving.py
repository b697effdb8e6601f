"""ConServe with roles that bend: no worker idles while another has too much before it.

Whether a phase 1 goes to a prefiller or is *spilled*, that is prefilled by the decoder that will
decode it, is a comparison of two times, both made of what was observed:

    what a spill saves    the turn's own wait for the prefiller, and one prefill less before each
                          turn that waits behind it and that the decoders have room for
    what it costs         a stall of one prefill for each turn that the decoder is decoding, and
                          the turn's own wait for prefills there

A wait is prompt tokens not prefilled yet times the worker's observed seconds a token. While
nothing was observed, nothing is spilled. An idle prefiller so gets every phase 1, and an idle
decoder takes one as soon as the prefiller has any before it.
"""

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
    TurnView,
)
from conserve_sglang.policy.parts import (
    backlog_s,
    fits,
    phase_one,
    prefill_rate,
    reason_of,
    tbt_with_one_more,
)
from conserve_sglang.policy.retention import BY_HISTORY, CONSTANT


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkConservingParams:
    """`max_local_append_tokens`: shorter appends are always prefilled on the decoder.
    `stall_weight`: how much more a second of stalled answers counts than a second waited for the
    first token; at 1 a spill must save as much as it costs. `by_history`: each conversation is
    kept the room, and for the time, that it has shown to need (`policy.retention`).
    `late_after_s`: a turn 1 that has waited longer goes behind its tenant's others, which may still
    be in time; None: first come, first served."""

    max_local_append_tokens: int = 2048
    stall_weight: float = 1.0
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
        self.retention = BY_HISTORY if params.by_history else CONSTANT

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        cause, pinned = turn.phase_one_cause, turn.pinned_decoder
        if cause is None and pinned is not None:
            if turn.new_tokens < self._max_append:
                limit = self._max_append - 1
                return Placement(pinned, None, PlacementReason.PINNED, True, limit)
            if pinned in cluster.workers(Role.PREFILL):
                return Placement(pinned, None, PlacementReason.PINNED, True)
            cause = PhaseOneCause.LARGE_APPEND
        kept = self._kept(turn, cluster)
        if kept is not None:
            return kept
        answer = phase_one(turn, cluster, reason_of(cause), keeps_kv=True)
        if isinstance(answer, Defer) and answer.reason is DeferReason.NO_KV_ROOM:
            return self._squeezed(turn, cluster) or answer
        if isinstance(answer, Placement):
            where = answer.prefiller
        elif isinstance(answer, Defer) and answer.reason is DeferReason.PREFILL_BACKLOG:
            where = cluster.least_backlog_prefiller()
        else:
            return answer
        spilled = None if where is None else self._spilled(turn, cluster, where)
        return answer if spilled is None else spilled

    def _kept(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        """The turn on a prefiller that prefills and decodes it: not on real servers."""
        return None

    def _squeezed(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        """The same, where no decoder has room."""
        return None

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
        pinned = turn.pinned_decoder
        holds_it = pinned is not None and fits(turn, cluster, pinned)
        candidates = (pinned,) if holds_it and pinned else cluster.workers(Role.DECODE)
        best: WorkerId | None = None
        least_s = inf
        for each in candidates:
            if not fits(turn, cluster, each):
                continue
            tokens = turn.new_tokens if each == pinned else turn.input_tokens
            stall_s = tokens * prefill_rate(cluster, each, prefiller)
            num_stalled = cluster.num_running(each)
            cost_s = backlog_s(cluster, each) + self._stall_weight * stall_s * num_stalled
            if cost_s < least_s:
                best, least_s = each, cost_s
        return best, least_s


class WorkConservingTails(WorkConserving):
    """The same, and a conversation stays on its prefiller where its answers would come sooner.

    That is: nothing waits to be prefilled there, it has room, and by the observed times between
    tokens one turn more on it is served faster than on the fastest decoder.
    """

    __slots__ = ()

    decodes_on_prefillers = True

    def _kept(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        prefiller = cluster.least_backlog_prefiller()
        if turn.pinned_decoder is not None or prefiller is None:
            return None
        if cluster.pending_tokens(prefiller) or cluster.num_waiting():
            return None
        if turn.needed_tokens > cluster.free_tokens(prefiller):
            return None
        decoders = [each for each in cluster.workers(Role.DECODE) if fits(turn, cluster, each)]
        there = min((tbt_with_one_more(cluster, each) for each in decoders), default=inf)
        idle = cluster.num_running(prefiller) == 0 and all(map(cluster.num_running, decoders))
        if not idle and tbt_with_one_more(cluster, prefiller) >= there:
            return None
        return Placement(prefiller, None, PlacementReason.KEPT_ON_PREFILLER, True)

    def _squeezed(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        able = [
            each
            for each in cluster.workers(Role.PREFILL)
            if turn.needed_tokens <= cluster.free_tokens(each)
            and cluster.pending_tokens(each) <= turn.input_tokens
        ]
        if not able:
            return None
        least = min(able, key=cluster.pending_tokens)
        return Placement(least, None, PlacementReason.KEPT_ON_PREFILLER, True)


def _num_helped(turn: TurnView, cluster: ClusterView) -> int:
    """How many of the turns that wait behind have one prefill less before them, if this one is
    prefilled elsewhere: as many as the decoders have room for beside it. The others wait for that.
    """
    waiting = cluster.num_waiting()
    if not waiting:
        return 0
    room = sum(cluster.free_tokens(each) for each in cluster.workers(Role.DECODE))
    return min(waiting, max(0, room // max(1, turn.needed_tokens) - 1))
