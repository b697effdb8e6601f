"""The cluster without the workers at which a turn has failed before."""

from collections.abc import Sequence

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.kv_ledger import KvLedger


class Avoiding:
    """A `ClusterView` for a turn's further attempts; looks at every worker, so not for all turns.

    A worker that fails each turn at once is the one with most free room, and would be asked again.
    """

    def __init__(self, ledger: KvLedger, avoided: tuple[WorkerId, ...]) -> None:
        self._ledger = ledger
        self._avoided = avoided

    def workers(self, role: Role) -> Sequence[WorkerId]:
        """Workers of a role that take turns, in order of registration."""
        return [each for each in self._ledger.workers(role) if each not in self._avoided]

    def most_free(self, role: Role) -> WorkerId | None:
        """The worker of a role with most free KV tokens."""
        state = self._ledger.state
        return max(
            self.workers(role), key=lambda each: state(each).free_tokens, default=None
        )  # the first among equals

    def least_backlog_prefiller(self) -> WorkerId | None:
        """The prefiller with fewest prompt tokens sent to it and not yet prefilled."""
        return min(self.workers(Role.PREFILL), key=self._backlog, default=None)

    def takes_prompts(self, prefiller: WorkerId) -> bool:
        """Whether a prefiller has little enough before it to be sent more."""
        return self._ledger.takes_prompts(prefiller)

    def free_tokens(self, worker_id: WorkerId) -> int:
        """KV tokens neither resident nor reserved; 0 when overcommitted."""
        return self._ledger.free_tokens(worker_id)

    def largest_capacity(self, role: Role) -> int:
        """Size of the largest KV pool of a role, in tokens, of workers up or down."""
        return self._ledger.largest_capacity(role)

    def _backlog(self, worker_id: WorkerId) -> int:
        state = self._ledger.state(worker_id)
        return state.backlog_tokens + state.foreign_backlog_tokens
