"""What the simulator writes down of a turn and of a conversation.

`TurnRecord` is made the quick way, see `policy.api`.
"""

from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.latency import TurnTimes, conversation_e2e_s, ttfet_s
from conserve_sglang.policy import PlacementReason
from conserve_sglang.sim.decode_log import GapRun, mean_gap_s
from conserve_sglang.workload import ConversationPlan


class Outcome(Enum):
    """How a conversation ended. All but the first end it before its last turn is answered."""

    ANSWERED = "answered"
    REJECTED = "rejected"
    NEVER_FITS = "never_fits"


@dataclass(slots=True)
class TurnRecord:
    """An answered turn. `cached_tokens` is what the decoder already held of the prompt;
    `prefiller` is None for a turn the decoder served alone. `prefill_at_s`: when the first step of
    its prefill began, after every wait for that. Joules are modelled and of all its attempts: its
    share of the prefill and decode steps it was in; idle is nobody's."""

    turn_index: int
    arrived_at_s: float
    first_token_at_s: float
    last_token_at_s: float
    reason: PlacementReason
    prefiller: WorkerId | None
    decoder: WorkerId
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    attempts: int
    prefill_at_s: float = 0.0
    modelled_prefill_j: float = 0.0
    modelled_decode_j: float = 0.0

    @property
    def times(self) -> TurnTimes:
        """Arrival, first and last token."""
        return TurnTimes(self.arrived_at_s, (self.first_token_at_s, self.last_token_at_s))

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.times.ttft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRecord:
    """A conversation that is over: its answered turns, and the token gaps of its last turn.

    `why` says more when it was not answered, and `modelled_unanswered_j` is what was spent on the
    turn it ended with.
    """

    plan: ConversationPlan
    outcome: Outcome
    turns: tuple[TurnRecord, ...]
    last_turn_gaps: tuple[GapRun, ...]
    why: str = ""
    modelled_unanswered_j: float = 0.0

    @property
    def modelled_j(self) -> float:
        """Joules of all its turns, idle left out; modelled."""
        spent = sum(turn.modelled_prefill_j + turn.modelled_decode_j for turn in self.turns)
        return spent + self.modelled_unanswered_j

    @property
    def ttfet_s(self) -> float:
        """Time to first effective token."""
        return ttfet_s((self.turns[0].times, self.turns[-1].times))

    @property
    def e2e_s(self) -> float:
        """Last token of the last turn less the conversation's arrival."""
        return conversation_e2e_s((self.turns[0].times, self.turns[-1].times))

    @property
    def last_turn_tbt_s(self) -> float | None:
        """The mean token gap of the last turn; None when it has one token."""
        return mean_gap_s(self.last_turn_gaps)
