"""What to do, as the dispatcher tells its executor. Imperative; carried out in order.

`SendTurn` is made the quick way, see `policy.api`.
"""

from dataclasses import dataclass

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.policy.api import PlacementReason, RejectReason


@dataclass(slots=True, init=False)
class SendTurn:
    """Send a turn to its workers.

    With a `prefiller` the same body goes to both and the KV moves once (phase 1). Without one
    the decoder serves the turn alone: on a decode-mode worker that is a local turn and `limits`
    bounds what it may prefill. `attempt` counts from 1. `turn_index` counts the conversation's
    turns from 1. `resident_tokens` is what the ledger has of the conversation on the decoder.
    `fetches_kv`: the prefiller takes that from the decoder first; simulated workers only.
    """

    turn_id: TurnId
    conversation_id: ConversationId
    decoder: WorkerId
    prefiller: WorkerId | None
    limits: LocalLimits | None
    reason: PlacementReason
    keeps_kv: bool
    attempt: int
    turn_index: int
    resident_tokens: int
    fetches_kv: bool

    def __init__(
        self,
        turn_id: TurnId,
        conversation_id: ConversationId,
        decoder: WorkerId,
        prefiller: WorkerId | None,
        limits: LocalLimits | None,
        reason: PlacementReason,
        keeps_kv: bool,
        attempt: int,
        turn_index: int,
        resident_tokens: int = 0,
        fetches_kv: bool = False,
    ) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.decoder = decoder
        self.prefiller = prefiller
        self.limits = limits
        self.reason = reason
        self.keeps_kv = keeps_kv
        self.attempt = attempt
        self.turn_index = turn_index
        self.resident_tokens = resident_tokens
        self.fetches_kv = fetches_kv


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectTurn:
    """Answer a turn with an error; it has no first byte yet.

    `retry_after_s`: where waiting helps, when to come again, by the observed rate of service.
    """

    turn_id: TurnId
    reason: RejectReason
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortTurn:
    """Stop a turn at its workers, then report it as failed or abandoned."""

    turn_id: TurnId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConversation:
    """Let go of a conversation's KV on a worker."""

    conversation_id: ConversationId
    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameWorker:
    """Count a turn's failure against a worker; see `blame`."""

    worker_id: WorkerId


Command = SendTurn | RejectTurn | AbortTurn | ReleaseConversation | BlameWorker
