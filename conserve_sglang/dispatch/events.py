"""What happened, as the dispatcher is told. Past tense; times travel beside them as `now`.

The three events of every turn are made the quick way, see `policy.api`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.core.worker import WorkerSpec
from conserve_sglang.policy.api import PhaseOneCause


class FailureCause(Enum):
    """Why a turn sent to its workers came back without a first byte."""

    PREFIX_MISSING = "prefix_missing"
    APPEND_TOO_LARGE = "append_too_large"
    DECODER_FAILED = "decoder_failed"
    PREFILLER_FAILED = "prefiller_failed"
    DECODER_BUSY = "decoder_busy"
    PREFILLER_BUSY = "prefiller_busy"
    DECODER_REMOVED = "decoder_removed"
    PREFILLER_REMOVED = "prefiller_removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUp:
    """A worker is there (new, or back with an empty KV pool)."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone and its KV with it. Turns running there are reported one by one.

    `cause` is why the conversations pinned there need a phase 1.
    """

    worker_id: WorkerId
    cause: PhaseOneCause = PhaseOneCause.DECODER_LOST


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining:
    """A worker is given no new turns; those that run there go on.

    A conversation pinned there keeps its pin until its next turn, which is a phase 1 elsewhere
    for `cause`: if the worker is admitted before, nothing was moved.
    """

    worker_id: WorkerId
    cause: PhaseOneCause = PhaseOneCause.DRAINED


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAdmitted:
    """A worker that is up is given turns again: `num_turns` of them, or any number if None."""

    worker_id: WorkerId
    num_turns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRemoved:
    """A worker left the deployment; one that comes under its name is another one."""

    worker_id: WorkerId


@dataclass(slots=True, init=False)
class TurnArrived:
    """A client asks for a turn. `input_tokens` is the length of the whole prompt.

    `is_exact` is False when the length was derived from bytes rather than counted; such a length
    places the turn but never rejects it. `tenant` counts for a conversation that begins here; a
    live one keeps its own. `deadline_s` is how long the turn may wait, if that is shorter than
    the dispatcher's own bound.
    """

    turn_id: TurnId
    conversation_id: ConversationId
    input_tokens: int
    is_exact: bool
    tenant: TenantId
    deadline_s: float | None

    def __init__(
        self,
        turn_id: TurnId,
        conversation_id: ConversationId,
        input_tokens: int,
        is_exact: bool = True,
        tenant: TenantId = DEFAULT_TENANT.tenant_id,
        deadline_s: float | None = None,
    ) -> None:
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.input_tokens = input_tokens
        self.is_exact = is_exact
        self.tenant = tenant
        self.deadline_s = deadline_s


@dataclass(slots=True, init=False)
class FirstToken:
    """The decoder's first output arrived: the prefill is over and the KV is where it belongs."""

    turn_id: TurnId

    def __init__(self, turn_id: TurnId) -> None:
        self.turn_id = turn_id


@dataclass(frozen=True, slots=True)
class KvMoved:
    """The KV of a turn for several choices is where it belongs; its first output is still to
    come, and the turn may yet fail."""

    turn_id: TurnId


@dataclass(slots=True, init=False)
class TurnDone:
    """A turn was answered whole. Token counts are the decoder's own; of several choices
    `output_tokens` is the mean, since the conversation goes on with one of them."""

    turn_id: TurnId
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int

    def __init__(
        self,
        turn_id: TurnId,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int,
    ) -> None:
        self.turn_id = turn_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed:
    """A turn came back before its first byte reached the client; it may be tried elsewhere.

    `by_answer`: its worker answered with an error, for which the request may be the reason.
    """

    turn_id: TurnId
    cause: FailureCause
    by_answer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnInterrupted:
    """A turn lost its decoder in the middle of its answer; it may go on elsewhere from there.

    `output_tokens` counts what its client has of the answer by now, over all attempts.
    """

    turn_id: TurnId
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnAbandoned:
    """A turn is over without a whole answer: the client left, the answer broke off, or a worker
    answered with an error that was passed on. Nothing more will be sent for it."""

    turn_id: TurnId


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationEnded:
    """The client said that a conversation is over."""

    conversation_id: ConversationId


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRestored:
    """A conversation is known from elsewhere: an earlier life of the router, or another replica.

    `decoder` None, or one that is not up: its KV is nowhere, and its next turn a phase 1. Of a
    conversation that is live, this is the newer truth; a turn that was about to bring its KV
    somewhere is placed again.
    """

    conversation_id: ConversationId
    decoder: WorkerId | None
    resident_tokens: int
    prompt_tokens: int
    num_turns: int
    num_kv_transfers: int
    idle_s: float
    tenant: TenantId = DEFAULT_TENANT.tenant_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTaken:
    """Another replica serves a conversation now, and counts its KV."""

    conversation_id: ConversationId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersReported:
    """What other replicas hold and have promised on each worker, in KV tokens, and the prompt
    tokens they sent to it that are not prefilled yet. Workers not named: nothing."""

    kv_tokens: Mapping[WorkerId, int]
    backlog_tokens: Mapping[WorkerId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantsWeighed:
    """The tenants' weights are these now; a tenant not named weighs 1."""

    weights: Mapping[TenantId, float]

    def __post_init__(self) -> None:
        for tenant_id, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"tenant {tenant_id}: its weight must be above 0, not {weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBounded:
    """While `num_turns` run, no turn is sent but those whose KV lies on their decoder; None: any
    number may. What runs already goes on."""

    num_turns: int | None

    def __post_init__(self) -> None:
        if self.num_turns is not None and self.num_turns < 1:
            raise ValueError(f"at least one turn has to run, not {self.num_turns}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed: deadlines and time-to-live are looked at."""


Event = (
    WorkerUp
    | WorkerLost
    | WorkerDraining
    | WorkerAdmitted
    | WorkerRemoved
    | TurnArrived
    | FirstToken
    | KvMoved
    | TurnDone
    | TurnFailed
    | TurnInterrupted
    | TurnAbandoned
    | ConversationEnded
    | ConversationRestored
    | ConversationTaken
    | PeersReported
    | TenantsWeighed
    | RunningBounded
    | Tick
)
