"""A cluster as written down, for policies to look at."""

from dataclasses import dataclass, field

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import FlagValue, PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.policy import Answer, make_policy
from conserve_sglang.policy.api import Pace, TurnView


@dataclass
class StubCluster:
    """What each worker has and does, by its name; roles are told by the first letter."""

    free: dict[WorkerId, int] = field(default_factory=dict)
    prefillers: tuple[WorkerId, ...] = ()
    capacity: int = 1000
    busy: tuple[WorkerId, ...] = ()
    running: dict[WorkerId, int] = field(default_factory=dict)
    pending: dict[WorkerId, int] = field(default_factory=dict)
    rates: dict[WorkerId, float] = field(default_factory=dict)
    paces: dict[WorkerId, Pace] = field(default_factory=dict)
    line: tuple[int, int] = (0, 0)

    def workers(self, role: Role) -> tuple[WorkerId, ...]:
        if role is Role.PREFILL:
            return self.prefillers
        return tuple(w for w in self.free if w.startswith(role.value[0]))

    def most_free(self, role: Role) -> WorkerId | None:
        return max(self.workers(role), key=self.free.__getitem__, default=None)

    def least_backlog_prefiller(self) -> WorkerId | None:
        return self.prefillers[0] if self.prefillers else None

    def takes_prompts(self, prefiller: WorkerId) -> bool:
        return prefiller not in self.busy

    def free_tokens(self, worker_id: WorkerId) -> int:
        return self.free[worker_id]

    def largest_capacity(self, role: Role) -> int:
        return self.capacity if self.workers(role) else 0

    def num_running(self, worker_id: WorkerId) -> int:
        return self.running.get(worker_id, 0)

    def pending_tokens(self, worker_id: WorkerId) -> int:
        return self.pending.get(worker_id, 0)

    def prefill_s_per_token(self, worker_id: WorkerId) -> float | None:
        return self.rates.get(worker_id)

    def pace(self, worker_id: WorkerId) -> Pace | None:
        return self.paces.get(worker_id)

    def num_waiting(self) -> int:
        return self.line[0]

    def waiting_tokens(self) -> int:
        return self.line[1]


def ask(name: str, turn: TurnView, cluster: StubCluster, **params: FlagValue) -> Answer:
    """What a policy says."""
    return make_policy(PolicyChoice(name=name, params=params)).place(turn, cluster)
