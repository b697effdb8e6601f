"""What a conversation is going to ask for, turn by turn. Lengths only, never text.

`TurnPlan` and `ConversationPlan` are frozen by agreement only, see `policy.api`: a generated
workload has millions of them.
"""

from dataclasses import dataclass

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.core.tenant import DEFAULT_TENANT


@dataclass(slots=True, kw_only=True)
class TurnPlan:
    """One turn to be played.

    `input_tokens` is the whole prompt. Its first `shared_tokens` equal the conversation's context
    (prompt and answer) at the end of the previous turn; 0 in turn 1. `gap_s` is the tool gap: from
    the end of the previous turn to this one's arrival.
    """

    input_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    gap_s: float = 0.0

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError("a turn needs at least one token of input and one of output")
        if not 0 <= self.shared_tokens <= self.input_tokens:
            raise ValueError("shared_tokens must lie within the prompt")
        if self.gap_s < 0:
            raise ValueError("gap_s must not be negative")

    @property
    def append_tokens(self) -> int:
        """The part of the prompt that the conversation did not have yet."""
        return self.input_tokens - self.shared_tokens


@dataclass(slots=True, kw_only=True)
class ConversationPlan:
    """One conversation of a tenant to be played: its turns come one after the other."""

    conversation_id: ConversationId
    turns: tuple[TurnPlan, ...]
    arrived_at_s: float = 0.0
    tenant: TenantId = DEFAULT_TENANT.tenant_id

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"conversation {self.conversation_id} has no turns")
        if self.turns[0].shared_tokens:
            raise ValueError(f"conversation {self.conversation_id}: turn 1 has nothing to share")
        context = 0
        for turn in self.turns:
            if turn.shared_tokens > context:
                raise ValueError(
                    f"conversation {self.conversation_id}: a turn shares more than there is"
                )
            context = turn.input_tokens + turn.output_tokens
