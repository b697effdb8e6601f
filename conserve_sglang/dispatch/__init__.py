"""The state machine that owns conversations, pins and the KV ledger."""

from conserve_sglang.dispatch.commands import (
    AbortTurn,
    BlameWorker,
    Command,
    RejectTurn,
    ReleaseConversation,
    SendTurn,
)
from conserve_sglang.dispatch.dispatcher import Dispatcher
from conserve_sglang.dispatch.events import (
    ConversationEnded,
    ConversationRestored,
    ConversationTaken,
    Event,
    FailureCause,
    FirstToken,
    PeersReported,
    TenantsWeighed,
    Tick,
    TurnAbandoned,
    TurnArrived,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
    WorkerAdmitted,
    WorkerDraining,
    WorkerLost,
    WorkerRemoved,
    WorkerUp,
)
from conserve_sglang.dispatch.invariants import validate
from conserve_sglang.dispatch.settings import DispatchSettings, dispatch_settings
from conserve_sglang.dispatch.state import ConversationView, WorkerLoad

__all__ = [
    "AbortTurn",
    "BlameWorker",
    "Command",
    "ConversationEnded",
    "ConversationRestored",
    "ConversationTaken",
    "ConversationView",
    "DispatchSettings",
    "Dispatcher",
    "Event",
    "FailureCause",
    "FirstToken",
    "PeersReported",
    "RejectTurn",
    "ReleaseConversation",
    "SendTurn",
    "TenantsWeighed",
    "Tick",
    "TurnAbandoned",
    "TurnArrived",
    "TurnDone",
    "TurnFailed",
    "TurnInterrupted",
    "WorkerAdmitted",
    "WorkerDraining",
    "WorkerLoad",
    "WorkerLost",
    "WorkerRemoved",
    "WorkerUp",
    "dispatch_settings",
    "validate",
]
