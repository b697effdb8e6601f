"""The one definition of TTFT, TTFET and E2E, from the times tokens arrived.

Times are seconds on one monotonic clock. Definitions of the conversation metrics are those of
arXiv 2606.01839; GLOSSARY.md quotes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class TurnTimes:
    """When a turn arrived and when each of its output tokens (or chunks) came. Frozen by agreement
    only: many are made."""

    arrived_at_s: float
    token_at_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.token_at_s:
            raise ValueError("a turn without output has no latency")

    @property
    def ttft_s(self) -> float:
        """Time to first token: first output token less the turn's arrival."""
        return self.token_at_s[0] - self.arrived_at_s

    @property
    def e2e_s(self) -> float:
        """Last output token less the turn's arrival."""
        return self.token_at_s[-1] - self.arrived_at_s


def ttfet_s(turns: Sequence[TurnTimes]) -> float:
    """Time to first effective token: the first token of the last turn, which is the first output
    a user sees of a tool-calling conversation, less the arrival of turn 1."""
    return turns[-1].token_at_s[0] - turns[0].arrived_at_s


def conversation_e2e_s(turns: Sequence[TurnTimes]) -> float:
    """The last token of the last turn less the arrival of turn 1."""
    return turns[-1].token_at_s[-1] - turns[0].arrived_at_s
