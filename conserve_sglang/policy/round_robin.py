"""Baseline: turns rotate over the workers, blind to load and to conversations."""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    Defer,
    DeferReason,
    Placement,
    PlacementReason,
    TurnView,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobinParams:
    """No parameters."""


class RoundRobin:
    """The n-th arrival goes to the n-th worker, modulo their number.

    Over mixed workers if there are any; else over prefillers and decoders in pairs, with a KV
    transfer each turn. It never waits for room, so it may overcommit a worker.
    """

    __slots__ = ()

    def __init__(self, params: RoundRobinParams) -> None:
        pass

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        number = turn.arrival_number
        prefiller = None
        decoders = cluster.workers(Role.MIXED)
        if not decoders:
            decoders = cluster.workers(Role.DECODE)
            prefillers = cluster.workers(Role.PREFILL)
            if not prefillers:
                return Defer(DeferReason.NO_PREFILLER)
            prefiller = prefillers[number % len(prefillers)]
        if not decoders:
            return Defer(DeferReason.NO_DECODER)
        return Placement(
            decoder=decoders[number % len(decoders)],
            prefiller=prefiller,
            reason=PlacementReason.ROTATION,
            keeps_kv=False,
        )
