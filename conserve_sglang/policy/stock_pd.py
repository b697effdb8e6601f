"""Baseline: every turn goes through a prefiller and a decoder."""

from dataclasses import dataclass

from conserve_sglang.policy.api import Answer, ClusterView, PlacementReason, TurnView
from conserve_sglang.policy.parts import phase_one


@dataclass(frozen=True, slots=True, kw_only=True)
class StockPdParams:
    """`sticky`: keep a conversation on one decoder, so that only the delta moves each turn."""

    sticky: bool = False


class StockPd:
    """One KV transfer per turn, as SGLang's own PD serves it."""

    __slots__ = ("_sticky",)

    def __init__(self, params: StockPdParams) -> None:
        self._sticky = params.sticky

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place one turn; see the class."""
        if not self._sticky:
            turn = TurnView(
                turn.arrival_number, turn.input_tokens, turn.needed_tokens, None, 0,
                turn.phase_one_cause,
            )  # fmt: skip
        return phase_one(turn, cluster, PlacementReason.EVERY_TURN, keeps_kv=self._sticky)
