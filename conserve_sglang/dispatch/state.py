"""The dispatcher's records of conversations and turns, and the views of them others may read."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from conserve_sglang.core.ids import ConversationId, TenantId, TierName, TurnId, WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.kv_ledger import WorkerState
from conserve_sglang.policy.api import History, PhaseOneCause


@dataclass(slots=True, eq=False)
class TenantAccount:
    """A tenant's conversations, its turns that wait, and how far it has been served.

    `idle` and `lapsed`: its conversations at rest, see `Conversations`; `is_mixed` while some have
    joined behind younger ones, until somebody asks who is first. `waiting` stands in
    arrival order and may hold stale entries; `num_waiting` does not count them. `holding`: its
    conversations with held turns. `start` and `finish` are its tags in the fair order.
    """

    tenant_id: TenantId
    weight: float
    num_conversations: int = 0
    idle: "OrderedDict[ConversationId, Conversation]" = field(default_factory=OrderedDict)
    lapsed: "OrderedDict[ConversationId, Conversation]" = field(default_factory=OrderedDict)
    is_mixed: bool = False
    waiting: "deque[Turn]" = field(default_factory=deque)
    num_waiting: int = 0
    holding: "dict[ConversationId, Conversation]" = field(default_factory=dict)
    num_held: int = 0
    start: float = 0.0
    finish: float = 0.0

    @property
    def share(self) -> float:
        """Live conversations by weight: who has most has more than the others."""
        return self.num_conversations / self.weight

    def longest_idle(self) -> "Conversation | None":
        """Its conversation idle for the longest time among those that may hold KV."""
        if self.is_mixed:
            for line in (self.idle, self.lapsed):
                by_age = sorted(line.values(), key=lambda each: each.last_active_at_s)
                line.clear()
                line.update((each.conversation_id, each) for each in by_age)
            self.is_mixed = False
        return next(iter(self.idle.values()), None)

    def longest_at_rest(self) -> "Conversation | None":
        """Its conversation at rest for the longest time, with or without KV."""
        idle = self.longest_idle()
        lapsed = next(iter(self.lapsed.values()), None)
        if idle is None or lapsed is None:
            return idle or lapsed
        return min(idle, lapsed, key=lambda conversation: conversation.last_active_at_s)


@dataclass(slots=True, eq=False)
class Conversation:
    """A live conversation.

    `decoder` with `decoder_epoch` is the pin; a pin of an older epoch is void. `headroom_tokens`
    are kept for its next turn there. `opener` is the
    turn that is bringing the conversation's KV to its decoder; turns that arrive meanwhile are
    `held`. `cause` is why the next turn needs a phase 1. `prompt_tokens` is the prompt of the
    last turn that was answered whole, 0 before there is one. `history`: what it has shown of
    itself to this dispatcher; None before its first answer.
    """

    conversation_id: ConversationId
    tenant: TenantAccount
    last_active_at_s: float
    decoder: WorkerState | None = None
    decoder_epoch: int = 0
    resident_tokens: int = 0
    headroom_tokens: int = 0
    prompt_tokens: int = 0
    cause: PhaseOneCause | None = None
    opener: "Turn | None" = None
    held: "deque[Turn] | None" = None
    num_open_turns: int = 0
    num_turns: int = 0
    num_kv_transfers: int = 0
    is_ended: bool = False
    history: History | None = None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker that answered an attempt with an error, and the other worker of that attempt."""

    worker_id: WorkerId
    partner: WorkerState | None
    partner_epoch: int


@dataclass(slots=True, eq=False)
class Turn:
    """A turn that arrived and is not over. It is sent while `decoder` is set, else it waits.

    Of a turn that goes on after its decoder was lost, `input_tokens` includes the
    `output_tokens` its client has already, and `cause` is why it needs a phase 1 of its own.
    `rank` orders it among its tenant's: its arrival number, more once it was put behind others.
    `pending_tokens` are those to be prefilled, on the prefiller or else on the decoder;
    `line_tokens` what it counts for in the waiting line. `prefill_s` is what `prefill_tokens`
    of it took to prefill, once the first token is out at `first_token_at_s`.
    """

    turn_id: TurnId
    conversation: Conversation
    arrival_number: int
    turn_index: int
    input_tokens: int
    is_exact: bool
    deadline_at_s: float
    rank: int
    arrived_at_s: float
    decoder: WorkerState | None = None
    decoder_epoch: int = 0
    prefiller: WorkerState | None = None
    prefiller_epoch: int = 0
    needed_tokens: int = 0
    reserved_tokens: int = 0
    backlog_tokens: int = 0
    pending_tokens: int = 0
    line_tokens: int = 0
    sent_at_s: float = 0.0
    first_token_at_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    keeps_kv: bool = False
    attempts: int = 0
    output_tokens: int = 0
    num_continuations: int = 0
    cause: PhaseOneCause | None = None
    avoids: tuple[WorkerId, ...] = ()  # workers at which an attempt failed
    suspects: tuple[Suspect, ...] = ()  # those that answered one with an error
    doubts: tuple[WorkerId, ...] = ()  # their partners, which may have been the reason
    has_met_busy: bool = False  # a worker refused it, being busy; see `busy`
    is_moving: bool = False  # it is to bring the KV elsewhere; until it has, the pin stays
    is_waiting: bool = False
    is_over: bool = False


@dataclass(slots=True)
class ConversationView:
    """A conversation as others see it; `decoder` is None while it has no pin.

    Made whenever one is stored, and so the quick way, see `policy.api`.
    """

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
