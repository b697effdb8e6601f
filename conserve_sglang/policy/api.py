"""The question a placement policy answers, and the answers it can give.

A policy is a pure function of one turn and of what is observed of the cluster. It keeps no
state, sees no future, and never looks at text.

`TurnView` and `Placement` are values like all others, but made once a turn. A frozen dataclass sets
each field through a function call when it is made, so these are frozen by agreement only; a class
called with keywords costs three times one called without, so these take their fields in order. And
they say themselves how they are made: a dataclass's own `__init__` is never compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role


class PhaseOneCause(Enum):
    """Why a turn was observed to need a new phase 1 although its conversation has a pin."""

    LARGE_APPEND = "large_append"
    PREFIX_MISSING = "prefix_missing"
    DECODER_LOST = "decoder_lost"
    DRAINED = "drained"
    WORKER_REMOVED = "worker_removed"
    RECLAIMED = "reclaimed"
    DECODER_BUSY = "decoder_busy"


class PlacementReason(Enum):
    """Why a turn runs where it runs; a metrics label, so of low cardinality."""

    FIRST_TURN = "first_turn"
    PINNED = "pinned"
    LARGE_APPEND = "large_append"
    PREFIX_MISSING = "prefix_missing"
    DECODER_LOST = "decoder_lost"
    DRAINED = "drained"
    WORKER_REMOVED = "worker_removed"
    RECLAIMED = "reclaimed"
    EVERY_TURN = "every_turn"
    STICKY = "sticky"
    ROTATION = "rotation"
    SPILLED = "spilled"
    KEPT_ON_PREFILLER = "kept_on_prefiller"
    OFFLOADED = "offloaded"
    DECODER_BUSY = "decoder_busy"

    __hash__ = object.__hash__  # members are one of a kind, and Enum's own is Python code


class DeferReason(Enum):
    """Why a turn has to wait."""

    NO_KV_ROOM = "no_kv_room"
    NO_DECODER = "no_decoder"
    NO_PREFILLER = "no_prefiller"
    PREFILL_BACKLOG = "prefill_backlog"
    RUNNING_BOUND = "running_bound"  # the dispatcher's own: as many turns run as may


class RejectReason(Enum):
    """Why a turn is not served at all."""

    TOO_LONG = "too_long"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    RETRIES_SPENT = "retries_spent"
    CONVERSATION_ENDED = "conversation_ended"
    TOO_MANY_CONVERSATIONS = "too_many_conversations"
    WORKERS_BUSY = "workers_busy"
    NO_DECODER = "no_decoder"
    NO_PREFILLER = "no_prefiller"

    __hash__ = object.__hash__  # members are one of a kind, and Enum's own is Python code


@dataclass(slots=True, eq=False)
class History:
    """What one conversation has shown of itself so far; tokens and seconds.

    `num_answers` of its turns were answered whole, with `output_tokens` in all and at most
    `longest_output`; `longest_append` is the most that a later prompt added to the context before
    it. There were `num_gaps` from an answer to the next turn, `gaps_s` in all, the longest of
    `longest_gap_s`. Changes with each turn.
    """

    num_answers: int = 0
    output_tokens: int = 0
    longest_output: int = 0
    longest_append: int = 0
    num_gaps: int = 0
    gaps_s: float = 0.0
    longest_gap_s: float = 0.0

    @property
    def mean_output_tokens(self) -> float | None:
        """The mean length of its answers; None before the first."""
        return self.output_tokens / self.num_answers if self.num_answers else None


NOTHING_SEEN = History()
"""Of a conversation that begins; not to be changed."""


@dataclass(slots=True, init=False)
class TurnView:
    """What is observed of a turn when it asks for a place. All lengths in tokens.

    `input_tokens` is the whole prompt; `needed_tokens` is the KV room it must find on a decoder
    that holds nothing of it; `resident_tokens` is what `pinned_decoder` holds of the
    conversation; `phase_one_cause` is set when this turn already met a reason to leave the pin.
    `pinned_decoder` is None for a conversation without a pin, or whose decoder takes no turns.
    """

    arrival_number: int
    input_tokens: int
    needed_tokens: int
    pinned_decoder: WorkerId | None
    resident_tokens: int
    phase_one_cause: PhaseOneCause | None
    history: History

    def __init__(
        self,
        arrival_number: int,
        input_tokens: int,
        needed_tokens: int,
        pinned_decoder: WorkerId | None,
        resident_tokens: int,
        phase_one_cause: PhaseOneCause | None,
        history: History = NOTHING_SEEN,
    ) -> None:
        self.arrival_number = arrival_number
        self.input_tokens = input_tokens
        self.needed_tokens = needed_tokens
        self.pinned_decoder = pinned_decoder
        self.resident_tokens = resident_tokens
        self.phase_one_cause = phase_one_cause
        self.history = history

    @property
    def new_tokens(self) -> int:
        """What `pinned_decoder` lacks of the prompt: all of it without a pin; at least 1."""
        return max(1, self.input_tokens - self.resident_tokens)


class Pace(NamedTuple):
    """The time between two tokens that a worker's answers were observed to have lately, and how
    many turns it had to do with meanwhile; both are moving means."""

    tbt_s: float
    num_running: float


class ClusterView(Protocol):
    """What is observed of the workers that take turns. Ties go to the worker registered first."""

    def workers(self, role: Role) -> Sequence[WorkerId]:
        """Workers of a role that take turns, in order of registration."""
        ...

    def most_free(self, role: Role) -> WorkerId | None:
        """The worker of a role with most free KV tokens."""
        ...

    def least_backlog_prefiller(self) -> WorkerId | None:
        """The prefiller with fewest prompt tokens sent to it and not yet prefilled."""
        ...

    def takes_prompts(self, prefiller: WorkerId) -> bool:
        """Whether a prefiller has little enough before it to be sent more."""
        ...

    def free_tokens(self, worker_id: WorkerId) -> int:
        """KV tokens neither resident nor reserved, by the ledger; 0 when overcommitted."""
        ...

    def largest_capacity(self, role: Role) -> int:
        """Size of the largest KV pool of a role, in tokens, of workers up or down."""
        ...

    def num_running(self, worker_id: WorkerId) -> int:
        """Turns sent to a worker to be decoded there, and not over."""
        ...

    def pending_tokens(self, worker_id: WorkerId) -> int:
        """Prompt tokens sent to a worker that it had to prefill, as far as is known, and has not
        yet; what it holds of their conversations left out."""
        ...

    def prefill_s_per_token(self, worker_id: WorkerId) -> float | None:
        """Seconds a token that this worker's prefills of long prompts took lately, as seen from
        outside; None while there was none."""
        ...

    def pace(self, worker_id: WorkerId) -> Pace | None:
        """How fast a worker's answers came lately; None while there was none."""
        ...

    def num_waiting(self) -> int:
        """Turns that wait for a place, the one that is asked about left out."""
        ...

    def waiting_tokens(self) -> int:
        """What the decoders lack of these turns' prompts."""
        ...


@dataclass(slots=True, init=False)
class Placement:
    """Run the turn on `decoder`; with a `prefiller`, prefill there and move the KV once.

    `keeps_kv` says whether the conversation's KV counts as resident on the decoder afterwards,
    which is what makes it a pin. `max_local_tokens` bounds what a decoder may prefill by itself
    when there is no prefiller; None when it may prefill anything. `fetches_kv`: what `decoder`
    holds of the conversation is moved to `prefiller` first, and comes back with the rest.
    """

    decoder: WorkerId
    prefiller: WorkerId | None
    reason: PlacementReason
    keeps_kv: bool
    max_local_tokens: int | None
    fetches_kv: bool

    def __init__(
        self,
        decoder: WorkerId,
        prefiller: WorkerId | None,
        reason: PlacementReason,
        keeps_kv: bool,
        max_local_tokens: int | None = None,
        fetches_kv: bool = False,
    ) -> None:
        self.decoder = decoder
        self.prefiller = prefiller
        self.reason = reason
        self.keeps_kv = keeps_kv
        self.max_local_tokens = max_local_tokens
        self.fetches_kv = fetches_kv


@dataclass(frozen=True, slots=True)
class Defer:
    """Wait in line until something changes."""

    reason: DeferReason


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the turn with an error."""

    reason: RejectReason


Answer = Placement | Defer | Reject


class PlacementPolicy(Protocol):
    """Answers where one turn runs.

    One that has an attribute `retention` (see `policy.retention`) also says how much room
    conversations are kept, and for how long.
    """

    def place(self, turn: TurnView, cluster: ClusterView) -> Answer:
        """Place, defer or reject one turn; must be a pure function of its arguments."""
        ...
