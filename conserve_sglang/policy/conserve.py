"""The conversation is the unit: turn 1 is prefilled apart, its KV moves once, the tail stays."""

from dataclasses import dataclass

from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    PhaseOneCause,
    Placement,
    PlacementReason,
    TurnView,
)
from conserve_sglang.policy.parts import phase_one, reason_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ConserveParams:
    """`max_local_append_tokens`: an append of this many tokens or more starts a new phase 1."""

    max_local_append_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.max_local_append_tokens < 1:
            raise ValueError("max_local_append_tokens must be at least 1")


class Conserve:
    """Phase 1 through a prefiller onto the decoder with most free KV; the tail on that decoder.

    A pinned conversation leaves the local path only for a reason that was observed: a large
    append, a prefix that is gone, a decoder that is gone.
    """

    __slots__ = ("_max_append", "_max_local")

    def __init__(self, params: ConserveParams) -> None:
        self._max_append = params.max_local_append_tokens
        self._max_local = params.max_local_append_tokens - 1

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        cause = turn.phase_one_cause
        if cause is None and turn.pinned_decoder is not None:
            if turn.input_tokens - turn.resident_tokens < self._max_append:
                return Placement(
                    turn.pinned_decoder, None, PlacementReason.PINNED, True, self._max_local
                )
            cause = PhaseOneCause.LARGE_APPEND
        return phase_one(turn, cluster, reason_of(cause), keeps_kv=True)
