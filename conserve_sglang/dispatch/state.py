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


@dataclass(slots=True, eq=False, init=False)
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
    decoder: WorkerState | None
    decoder_epoch: int
    resident_tokens: int
    headroom_tokens: int
    prompt_tokens: int
    cause: PhaseOneCause | None
    opener: "Turn | None"
    held: "deque[Turn] | None"
    num_open_turns: int
    num_turns: int
    num_kv_transfers: int
    is_ended: bool
    history: History | None

    def __init__(
        self,
        conversation_id: ConversationId,
        tenant: TenantAccount,
        last_active_at_s: float,
    ) -> None:
        self.conversation_id = conversation_id
        self.tenant = tenant
        self.last_active_at_s = last_active_at_s
        self.decoder = None
        self.decoder_epoch = 0
        self.resident_tokens = 0
        self.headroom_tokens = 0
        self.prompt_tokens = 0
        self.cause = None
        self.opener = None
        self.held = None
        self.num_open_turns = 0
        self.num_turns = 0
        self.num_kv_transfers = 0
        self.is_ended = False
        self.history = None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker that answered an attempt with an error, and the other worker of that attempt."""

    worker_id: WorkerId
    partner: WorkerState | None
    partner_epoch: int


@dataclass(slots=True, eq=False, init=False)
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
    decoder: WorkerState | None
    decoder_epoch: int
    prefiller: WorkerState | None
    prefiller_epoch: int
    needed_tokens: int
    reserved_tokens: int
    backlog_tokens: int
    pending_tokens: int
    line_tokens: int
    sent_at_s: float
    first_token_at_s: float
    prefill_tokens: int
    prefill_s: float
    keeps_kv: bool
    attempts: int
    output_tokens: int
    num_continuations: int
    cause: PhaseOneCause | None
    avoids: tuple[WorkerId, ...]  # workers at which an attempt failed
    suspects: tuple[Suspect, ...]  # those that answered one with an error
    doubts: tuple[WorkerId, ...]  # their partners, which may have been the reason
    has_met_busy: bool  # a worker refused it, being busy; see `busy`
    is_moving: bool  # it is to bring the KV elsewhere; until it has, the pin stays
    is_waiting: bool
    is_over: bool

    def __init__(
        self,
        turn_id: TurnId,
        conversation: Conversation,
        arrival_number: int,
        turn_index: int,
        input_tokens: int,
        is_exact: bool,
        deadline_at_s: float,
        rank: int,
        arrived_at_s: float,
    ) -> None:
        self.turn_id = turn_id
        self.conversation = conversation
        self.arrival_number = arrival_number
        self.turn_index = turn_index
        self.input_tokens = input_tokens
        self.is_exact = is_exact
        self.deadline_at_s = deadline_at_s
        self.rank = rank
        self.arrived_at_s = arrived_at_s
        self.decoder = None
        self.decoder_epoch = 0
        self.prefiller = None
        self.prefiller_epoch = 0
        self.needed_tokens = 0
        self.reserved_tokens = 0
        self.backlog_tokens = 0
        self.pending_tokens = 0
        self.line_tokens = 0
        self.sent_at_s = 0.0
        self.first_token_at_s = 0.0
        self.prefill_tokens = 0
        self.prefill_s = 0.0
        self.keeps_kv = False
        self.attempts = 0
        self.output_tokens = 0
        self.num_continuations = 0
        self.cause = None
        self.avoids = ()
        self.suspects = ()
        self.doubts = ()
        self.has_met_busy = False
        self.is_moving = False
        self.is_waiting = False
        self.is_over = False


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
