"""Where conversations are kept between two lives of a router."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union, runtime_checkable

from conserve_sglang.state.record import SavedConversation, SavedResponse

if TYPE_CHECKING:
    from conserve_sglang.state.shared import SharedStore


@runtime_checkable
class StateStore(Protocol):
    """Blocks, so it is called before the router serves, and then from one thread beside it."""

    def secret(self) -> bytes:
        """The router's secret, the same in its next life."""
        ...

    def load(self) -> list[SavedConversation]:
        """All stored conversations."""
        ...

    def write(
        self,
        changed: Sequence[SavedConversation],
        gone: Sequence[str],
        responses: Sequence[SavedResponse] = (),
        forgotten: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Store some conversations and forget others, all or nothing; and responses, of which those
        forgotten are told by tenant and id."""
        ...

    def load_responses(self) -> list[SavedResponse]:
        """All stored responses, in the order they were stored in."""
        ...

    def forget_responses(self) -> None:
        """Store none of them any more."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


Store = Union[StateStore, "SharedStore"]
"""Of one router alone, or of replicas."""
