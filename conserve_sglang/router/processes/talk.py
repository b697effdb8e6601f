"""What brain and fronts say to each other: lists of messages in MessagePack, each list framed.

Events and commands travel as the values of their fields, under their class's name: where they are
compiled, msgspec can neither make objects of them nor see the types of their fields.
"""

from dataclasses import fields
from typing import Any

import msgspec

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.core.tier import WorkerPlan
from conserve_sglang.dispatch import (
    AbortTurn,
    FailureCause,
    FirstToken,
    KvMoved,
    RejectTurn,
    SendTurn,
    TenantsWeighed,
    TurnAbandoned,
    TurnFailed,
    TurnInterrupted,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.router.history import FiledAt
from conserve_sglang.router.ports import Question, Told
from conserve_sglang.router.responses_store import Stored
from conserve_sglang.router.worker import WorkerState
from conserve_sglang.workers.usage import Usage


class Carried(msgspec.Struct, array_like=True, tag="c"):
    """An event of a front, or a command of the brain."""

    kind: str
    fields: msgspec.Raw


# from fronts


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """A front listens."""


class Arrived(msgspec.Struct, array_like=True, tag="a"):
    """A turn came in. One without a name brings its history, if it has one: the digests of a
    chat's messages, or a prompt (kind, bytes). All processes have one monotonic clock."""

    turn_id: int
    tenant: str
    name: bytes | None
    digests: list[bytes] | None
    prompt: tuple[bytes, bytes] | None
    input_bytes: int
    input_tokens: int | None
    arrived_at_s: float
    deadline_s: float | None = None


class Answered(msgspec.Struct, array_like=True, tag="d"):
    """A turn's answer is whole; see `Arrival.spoke_at_s`."""

    turn_id: int
    usage: Usage | None
    spoke_at_s: float | None


class Filed(msgspec.Struct, array_like=True, tag="f"):
    """The history a conversation's client will come back with."""

    key: str
    at: FiledAt | None


class Ended(msgspec.Struct, array_like=True, tag="e"):
    """A client said that a conversation is over."""

    key: str


class Kept(msgspec.Struct, array_like=True, tag="p"):
    """A client may go on from this response."""

    tenant: str
    response_id: str
    stored: Stored


class Flushed(msgspec.Struct, array_like=True, tag="u"):
    """All that was said before the brain asked for it has been heard by now."""

    number: int


class Asked(msgspec.Struct, array_like=True, tag="q"):
    """A client asks about the router."""

    number: int
    question: Question


class ConnectionRefused(msgspec.Struct, array_like=True, tag="r"):
    """A worker does not accept connections."""

    worker_id: str


class Looked(msgspec.Struct, array_like=True, tag="l"):
    """Of each worker, whether an answer is awaited, and whether it was heard since the last look;
    of those not named neither."""

    workers: dict[str, tuple[bool, bool]]


class Counted(msgspec.Struct, array_like=True, tag="m"):
    """All a front has counted since its start."""

    metrics: dict[str, Any]


# from the brain


class Welcome(msgspec.Struct, array_like=True, tag="w"):
    """What a front must know; `tier_map` is pickled, from one process of ours to its child."""

    number: int
    port: int
    secret: bytes
    tier_map: bytes


class Identified(msgspec.Struct, array_like=True, tag="i"):
    """Which conversation a turn without a name belongs to."""

    turn_id: int
    tenant: str
    key: str
    name: bytes


class Standing(msgspec.Struct, array_like=True, tag="s"):
    """How a worker stands. Said twice of one that is lost: before and after what runs there is
    taken care of."""

    plan: WorkerPlan
    state: WorkerState
    kv_bytes_per_token: float | None
    can_continue: bool
    serves_local_turns: bool


class Gone(msgspec.Struct, array_like=True, tag="g"):
    """A worker was removed."""

    worker_id: str


class Said(msgspec.Struct, array_like=True, tag="t"):
    """The answer to a question."""

    number: int
    told: Told


class Flush(msgspec.Struct, array_like=True, tag="n"):
    """Answer this when all is said that was to be said so far."""

    number: int


class ReloadKeys(msgspec.Struct, array_like=True, tag="k"):
    """Read the key file again."""


class Stop(msgspec.Struct, array_like=True, tag="x"):
    """Begin nothing new, finish what is open or end it `at_once`, and end."""

    at_once: bool = False


FromFront = (
    Carried
    | Ready
    | Arrived
    | Answered
    | Filed
    | Ended
    | Asked
    | Kept
    | Flushed
    | ConnectionRefused
    | Looked
    | Counted
)
FromBrain = Carried | Welcome | Identified | Standing | Gone | Said | Flush | ReloadKeys | Stop

encoder = msgspec.msgpack.Encoder()
from_fronts = msgspec.msgpack.Decoder(list[FromFront])
from_brain = msgspec.msgpack.Decoder(list[FromBrain])

_FORMS: dict[type[Any], Any] = {
    FirstToken: tuple[TurnId],
    KvMoved: tuple[TurnId],
    TurnFailed: tuple[TurnId, FailureCause, bool],
    TurnInterrupted: tuple[TurnId, int],
    TurnAbandoned: tuple[TurnId],
    TenantsWeighed: tuple[dict[TenantId, float]],
    SendTurn: tuple[
        TurnId, ConversationId, WorkerId, WorkerId | None, LocalLimits | None, PlacementReason,
        bool, int, int, int, bool,
    ],
    RejectTurn: tuple[TurnId, RejectReason, float | None],
    AbortTurn: tuple[TurnId],
}  # fmt: skip
TRAVEL = tuple(_FORMS)
FORMS = tuple(_FORMS.values())
_by_name = {
    kind.__name__: (kind, [field.name for field in fields(kind)], msgspec.msgpack.Decoder(form))
    for kind, form in _FORMS.items()
}


def carry(event_or_command: Any) -> Carried:
    """Pack an event or a command."""
    name = type(event_or_command).__name__
    values = [getattr(event_or_command, field) for field in _by_name[name][1]]
    return Carried(name, msgspec.Raw(encoder.encode(values)))


def carried(message: Carried) -> Any:
    """The event or command in a message."""
    kind, names, form = _by_name[message.kind]
    return kind(**dict(zip(names, form.decode(message.fields), strict=True)))
