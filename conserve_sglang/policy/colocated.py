"""Baseline: a conversation stays whole on one worker that serves both phases."""

from dataclasses import dataclass

from conserve_sglang.core.ids import WorkerId
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
from conserve_sglang.policy.parts import fits, roomiest


@dataclass(frozen=True, slots=True, kw_only=True)
class ColocatedParams:
    """`choose`: a conversation goes to the worker with "most_free" KV, or with "least_backlog":
    fewest prompt tokens to be prefilled, then fewest turns, of those where it fits."""

    choose: str = "most_free"

    def __post_init__(self) -> None:
        if self.choose not in {"most_free", "least_backlog"}:
            raise ValueError('choose must be "most_free" or "least_backlog"')


class Colocated:
    """Turn 1 to the worker that is chosen, later turns to the same one; no KV transfer.

    Mixed workers if there are any; else decoders, which prefill everything themselves.
    """

    __slots__ = ("_by_backlog",)

    def __init__(self, params: ColocatedParams) -> None:
        self._by_backlog = params.choose == "least_backlog"

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        pinned = turn.pinned_decoder
        if pinned is not None:
            return Placement(
                decoder=pinned, prefiller=None, reason=PlacementReason.STICKY, keeps_kv=True
            )
        role = Role.MIXED if cluster.workers(Role.MIXED) else Role.DECODE
        found = roomiest(turn, cluster, role)
        if self._by_backlog and not isinstance(found, Defer | Reject):
            found = self._idlest(turn, cluster, role) or found
        if isinstance(found, Defer | Reject):
            return found
        return Placement(
            decoder=found, prefiller=None, reason=PlacementReason.FIRST_TURN, keeps_kv=True
        )

    @staticmethod
    def _idlest(turn: TurnView, cluster: ClusterView, role: Role) -> WorkerId | None:
        return min(
            (each for each in cluster.workers(role) if fits(turn, cluster, each)),
            key=lambda each: (cluster.pending_tokens(each), cluster.num_running(each)),
            default=None,
        )
