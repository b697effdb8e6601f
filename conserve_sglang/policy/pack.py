"""ConServe that fills one decoder before it opens the next, so that idle ones stay idle.

A decoder's energy for a token falls steeply with its batch, and an idle one draws little. So a
phase 1 goes to the fullest decoder on which answers would still come as fast as promised.
"""

from dataclasses import dataclass

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    PhaseOneCause,
    Placement,
    PlacementReason,
    TurnView,
)
from conserve_sglang.policy.parts import fits, phase_one, reason_of, tbt_with_one_more
from conserve_sglang.policy.retention import BY_HISTORY, CONSTANT


@dataclass(frozen=True, slots=True, kw_only=True)
class PackParams:
    """`tbt_target_s`: the time between two tokens that answers must keep to, in the mean of one
    decoder. `margin`: the part of it that packing may use. `max_local_append_tokens` and
    `by_history` as for `work-conserving`."""

    tbt_target_s: float = 0.05
    margin: float = 0.8
    max_local_append_tokens: int = 2048
    by_history: bool = False

    def __post_init__(self) -> None:
        if self.tbt_target_s <= 0:
            raise ValueError("tbt_target_s must be positive")
        if not 0 < self.margin <= 1:
            raise ValueError("margin must be above 0 and at most 1")
        if self.max_local_append_tokens < 1:
            raise ValueError("max_local_append_tokens must be at least 1")


class ConservePack:
    """`conserve`, but onto the fullest decoder that keeps its target; without one, onto the
    decoder expected to be fastest."""

    __slots__ = ("_bound_s", "_max_append", "retention")

    def __init__(self, params: PackParams) -> None:
        self._bound_s = params.tbt_target_s * params.margin
        self._max_append = params.max_local_append_tokens
        self.retention = BY_HISTORY if params.by_history else CONSTANT

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        cause, pinned = turn.phase_one_cause, turn.pinned_decoder
        if cause is None and pinned is not None:
            if turn.new_tokens < self._max_append:
                limit = self._max_append - 1
                return Placement(pinned, None, PlacementReason.PINNED, True, limit)
            cause = PhaseOneCause.LARGE_APPEND
        chosen = self._fullest(turn, cluster)
        return phase_one(turn, cluster, reason_of(cause), keeps_kv=True, chosen=chosen)

    def _fullest(self, turn: TurnView, cluster: ClusterView) -> WorkerId | None:
        able = [each for each in cluster.workers(Role.DECODE) if fits(turn, cluster, each)]
        if not able:
            return None
        expected = {each: tbt_with_one_more(cluster, each) for each in able}
        keep = [each for each in able if expected[each] <= self._bound_s]
        if not keep:
            return min(able, key=expected.__getitem__)
        return max(keep, key=lambda each: (cluster.num_running(each), -cluster.free_tokens(each)))
