"""Small builders for tests of what survives."""

from typing import Any

from conserve_sglang.state import SavedConversation


def a_saved(key: str, **fields: Any) -> SavedConversation:
    """A conversation of three turns, pinned to d0."""
    saved = SavedConversation(
        key=key,
        tenant="default",
        name=key.encode(),
        worker="d0",
        incarnation="one",
        resident_tokens=100,
        prompt_tokens=90,
        num_turns=3,
        num_kv_transfers=1,
        last_active_at_wall=1000.0,
    )
    return saved._replace(**fields)
