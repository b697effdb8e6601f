"""What survives the router: conversations with their pins, and the secret their keys come from."""

from conserve_sglang.state.place import default_path, open_store
from conserve_sglang.state.reconcile import MetWorker, Reconciled, reconcile
from conserve_sglang.state.record import SavedConversation
from conserve_sglang.state.sqlite import SqliteStore
from conserve_sglang.state.store import StateStore, Store

__all__ = [
    "MetWorker",
    "Reconciled",
    "SavedConversation",
    "SqliteStore",
    "StateStore",
    "Store",
    "default_path",
    "open_store",
    "reconcile",
]
