"""Baseline: a conversation stays whole on one worker that serves both phases."""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    Defer,
    Placement,
    PlacementReason,
    Reject,
    TurnView,
)
from conserve_sglang.policy.parts import roomiest


@dataclass(frozen=True, slots=True, kw_only=True)
class ColocatedParams:
    """No parameters."""


class Colocated:
    """Turn 1 to the worker with most free KV, later turns to the same one; no KV transfer.

    Mixed workers if there are any; else decoders, which prefill everything themselves.
    """

    __slots__ = ()

    def __init__(self, params: ColocatedParams) -> None:
        pass

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        pinned = turn.pinned_decoder
        if pinned is not None:
            return Placement(
                decoder=pinned, prefiller=None, reason=PlacementReason.STICKY, keeps_kv=True
            )
        role = Role.MIXED if cluster.workers(Role.MIXED) else Role.DECODE
        found = roomiest(turn, cluster, role)
        if isinstance(found, Defer | Reject):
            return found
        return Placement(
            decoder=found, prefiller=None, reason=PlacementReason.FIRST_TURN, keeps_kv=True
        )
