"""The cluster with some of its workers left out, as a policy sees it for one turn."""

from collections.abc import Callable, Sequence
from math import inf

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.kv_ledger import KvLedger, WorkerState
from conserve_sglang.policy.api import Pace


class Partial:
    """A `ClusterView` of the workers that `keeps` keeps; looks at every worker."""

    def __init__(self, ledger: KvLedger, keeps: Callable[[WorkerState], bool]) -> None:
        self._ledger = ledger
        self._keeps = keeps

    def workers(self, role: Role) -> Sequence[WorkerId]:
        """Workers of a role that take turns, in order of registration."""
        state = self._ledger.state
        return [each for each in self._ledger.workers(role) if self._keeps(state(each))]

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

    def num_running(self, worker_id: WorkerId) -> int:
        """Turns sent to a worker to be decoded there, and not over."""
        return self._ledger.num_running(worker_id)

    def pending_tokens(self, worker_id: WorkerId) -> int:
        """Prompt tokens sent to a worker to be prefilled there, and not prefilled yet."""
        return self._ledger.pending_tokens(worker_id)

    def prefill_s_per_token(self, worker_id: WorkerId) -> float | None:
        """Seconds a token of a worker's recent prefills of long prompts."""
        return self._ledger.prefill_s_per_token(worker_id)

    def pace(self, worker_id: WorkerId) -> Pace | None:
        """How fast a worker's answers came lately."""
        return self._ledger.pace(worker_id)

    def num_waiting(self) -> int:
        """Turns that wait for a place, the one that is asked about left out."""
        return self._ledger.num_waiting()

    def waiting_tokens(self) -> int:
        """What the decoders lack of these turns' prompts."""
        return self._ledger.waiting_tokens()

    def _backlog(self, worker_id: WorkerId) -> int:
        state = self._ledger.state(worker_id)
        return state.backlog_tokens + state.foreign_backlog_tokens


class Avoiding(Partial):
    """Without the workers at which a turn has failed before, for its further attempts.

    A worker that fails each turn at once is the one with most free room, and would be asked again.
    """

    def __init__(self, ledger: KvLedger, avoided: tuple[WorkerId, ...]) -> None:
        super().__init__(ledger, lambda state: state.spec.worker_id not in avoided)


class Band(Partial):
    """Without the workers that decode in tiers for longer contexts than this one, or for shorter:
    those with the least `max_context_tokens` that the context keeps to are left."""

    def __init__(self, ledger: KvLedger, context_tokens: int) -> None:
        bounds = [
            bound
            for state in ledger.states()
            if state.takes_turns
            and state.spec.role is not Role.PREFILL
            and (bound := state.spec.max_context_tokens or inf) >= context_tokens
        ]
        least = min(bounds, default=inf)
        super().__init__(
            ledger,
            lambda state: (
                state.spec.role is Role.PREFILL or (state.spec.max_context_tokens or inf) == least
            ),
        )
