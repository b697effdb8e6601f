"""Baselines that pin a conversation to its decoder and never look back."""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.policy.api import Answer, ClusterView, Placement, PlacementReason, TurnView
from conserve_sglang.policy.parts import least_running, phase_one, reason_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ConserveBlindParams:
    """No parameters."""


class ConserveBlind:
    """ConServe as published (arXiv 2606.01839): every later turn stays on its decoder, however
    much it appends.

    The paper's headline also reserves the conversation's peak KV when it begins, which needs the
    future; here room is kept as for all policies. A decoder that is gone is left, of course.
    """

    __slots__ = ()

    def __init__(self, params: ConserveBlindParams) -> None:
        pass

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        return _stay(turn) or phase_one(
            turn, cluster, reason_of(turn.phase_one_cause), keeps_kv=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPpdParams:
    """No parameters."""


class StaticPpd:
    """PPD's static mode (arXiv 2603.13358): appends are always prefilled on the decoder.

    It differs from `conserve-blind` in how a decoder is found: the one with fewest turns.
    """

    __slots__ = ()

    def __init__(self, params: StaticPpdParams) -> None:
        pass

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        stays = _stay(turn)
        if stays is not None:
            return stays
        chosen = least_running(turn, cluster, cluster.workers(Role.DECODE))
        reason = reason_of(turn.phase_one_cause)
        return phase_one(turn, cluster, reason, keeps_kv=True, chosen=chosen)


def _stay(turn: TurnView) -> Placement | None:
    """On the pin, without any limit to what is prefilled there."""
    if turn.pinned_decoder is None or turn.phase_one_cause is not None:
        return None
    return Placement(turn.pinned_decoder, None, PlacementReason.PINNED, True)
