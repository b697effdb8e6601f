"""What the fleet wants to know of the dispatcher's books."""

from typing import Protocol

from conserve_sglang.core.ids import WorkerId


class Books(Protocol):
    """What the fleet reads of the dispatcher."""

    def num_running(self, worker_id: WorkerId) -> int:
        """Turns a worker has to do with now."""
        ...

    def num_answered(self, worker_id: WorkerId) -> int:
        """Turns a worker has answered or prefilled so far."""
        ...
