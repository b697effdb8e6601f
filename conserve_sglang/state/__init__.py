"""What survives the router: conversations with their pins, the secret their keys come from, and,
where that is asked for, the responses that clients may go on from."""

from conserve_sglang.state.place import default_path, open_store
from conserve_sglang.state.reconcile import MetWorker, Reconciled, reconcile
from conserve_sglang.state.record import SavedConversation, SavedResponse
from conserve_sglang.state.sqlite import SqliteStore
from conserve_sglang.state.store import StateStore, Store

__all__ = [
    "MetWorker",
    "Reconciled",
    "SavedConversation",
    "SavedResponse",
    "SqliteStore",
    "StateStore",
    "Store",
    "default_path",
    "open_store",
    "reconcile",
]
