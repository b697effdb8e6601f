"""The dispatcher's records of conversations and turns, and the views of them others may read."""

from collections import deque
from dataclasses import dataclass

from conserve_sglang.core.ids import ConversationId, TierName, TurnId, WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.kv_ledger import WorkerState
from conserve_sglang.policy.api import PhaseOneCause


@dataclass(slots=True, eq=False)
class Conversation:
    """A live conversation.

    `decoder` with `decoder_epoch` is the pin; a pin of an older epoch is void. `opener` is the
    turn that is bringing the conversation's KV to its decoder; turns that arrive meanwhile are
    `held`. `cause` is why the next turn needs a phase 1. `prompt_tokens` is the prompt of the
    last turn that was answered whole, 0 before there is one.
    """

    conversation_id: ConversationId
    last_active_at_s: float
    decoder: WorkerState | None = None
    decoder_epoch: int = 0
    resident_tokens: int = 0
    prompt_tokens: int = 0
    cause: PhaseOneCause | None = None
    opener: "Turn | None" = None
    held: "deque[Turn] | None" = None
    num_open_turns: int = 0
    num_turns: int = 0
    num_kv_transfers: int = 0
    is_ended: bool = False


@dataclass(slots=True, eq=False)
class Turn:
    """A turn that arrived and is not over. It is sent while `decoder` is set, else it waits.

    Of a turn that goes on after its decoder was lost, `input_tokens` includes the
    `output_tokens` its client has already, and `cause` is why it needs a phase 1 of its own.
    """

    turn_id: TurnId
    conversation: Conversation
    arrival_number: int
    turn_index: int
    input_tokens: int
    is_exact: bool
    deadline_at_s: float
    decoder: WorkerState | None = None
    decoder_epoch: int = 0
    prefiller: WorkerState | None = None
    prefiller_epoch: int = 0
    needed_tokens: int = 0
    reserved_tokens: int = 0
    backlog_tokens: int = 0
    keeps_kv: bool = False
    attempts: int = 0
    output_tokens: int = 0
    num_continuations: int = 0
    cause: PhaseOneCause | None = None
    avoids: tuple[WorkerId, ...] = ()  # workers at which an attempt failed
    is_waiting: bool = False
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationView:
    """A conversation as others see it; `decoder` is None while it has no pin."""

    conversation_id: ConversationId
    decoder: WorkerId | None
    resident_tokens: int
    prompt_tokens: int
    num_turns: int
    num_kv_transfers: int
    num_open_turns: int
    last_active_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """A worker's account in the ledger. Tokens; `free_tokens` is negative when overcommitted.

    `foreign_tokens` are those of other replicas. One that `is_up` but does not take turns is
    draining, or its trial turns are spent.
    """

    worker_id: WorkerId
    role: Role
    tier: TierName
    is_up: bool
    takes_turns: bool
    capacity_tokens: int
    resident_tokens: int
    reserved_tokens: int
    free_tokens: int
    backlog_tokens: int
    num_conversations: int
    foreign_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """Bounds of the dispatcher's work.

    `reserve_output_tokens` is the room set aside for a turn's answer while it runs: a constant,
    as SGLang's own `--num-reserved-decode-tokens`, not a guess at the answer's length.
    `reclaim_idle_s`: while a turn waits for KV room, conversations idle for longer are let go,
    the longest idle first. `prefix_slack_tokens`: how much of the previous prompt may be missing
    (page rounding) before the prefix counts as gone.
    """

    max_queued_turns: int = 1024
    queue_timeout_s: float = 60.0
    conversation_ttl_s: float = 3600.0
    reclaim_idle_s: float = 15.0
    reserve_output_tokens: int = 512
    max_attempts: int = 3
    max_continuations: int = 2
    prefix_slack_tokens: int = 128

    def __post_init__(self) -> None:
        for name in (
            "max_queued_turns",
            "reserve_output_tokens",
            "prefix_slack_tokens",
            "max_continuations",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
