"""One worker as the router knows it: its plan, its connections, and how it stands."""

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial

from conserve_sglang.core.health import HealthSettings
from conserve_sglang.core.tier import WorkerPlan
from conserve_sglang.core.worker import Role
from conserve_sglang.workers.access import PLAIN, WorkerAccess
from conserve_sglang.workers.bootstrap import prefiller_fields
from conserve_sglang.workers.breaker import BreakerState, CircuitBreaker
from conserve_sglang.workers.pool import ConnectionPool


class WorkerState(Enum):
    """How a worker stands with the router."""

    UNKNOWN = "unknown"
    UP = "up"
    LOST = "lost"
    REFUSED = "refused"
    REMOVED = "removed"


class Admission(Enum):
    """Which turns a worker that is up is given."""

    ANY = "any"
    TRIAL = "trial"
    NONE_FAILING = "none, its circuit breaker is open"
    NONE_DRAINING = "none, it is draining"


class Worker:
    """Turns travel on `pool`; probes and what else is asked of the worker on `control`."""

    def __init__(
        self,
        plan: WorkerPlan,
        health: HealthSettings,
        breaker: CircuitBreaker,
        on_refused: Callable[["Worker"], None],
        access: WorkerAccess = PLAIN,
    ) -> None:
        self.plan = plan
        self.worker_id = plan.worker_id
        self.new_pool = partial(
            ConnectionPool,
            plan.host,
            plan.port,
            access=access,
            unacknowledged_s=health.stall_s + health.stall_probe_timeout_s,
            on_refused=lambda: on_refused(self),
        )
        self.pool, self.control = self.new_pool(), self.new_pool()
        self.look = self.pool.look  # what waits for it; in other processes, if those hold turns
        self.prefiller_fields = prefiller_fields(plan.host, plan.bootstrap_port or 0)
        self.state = WorkerState.UNKNOWN
        self.reason = "not met yet"
        self.breaker = breaker
        self.admission = Admission.ANY  # as the dispatcher was told
        self.is_draining = False
        self.leaving: asyncio.Task[None] | None = None
        self.served_name = ""
        self.incarnation: str | None = None
        self.can_continue = False
        self.serves_local_turns = False
        self.kv_bytes_per_token: float | None = None
        self.num_missed_probes = 0
        self.num_answers_seen = 0
        self.heard_at_s = 0.0  # a byte of any kind
        self.progress_at_s = 0.0  # a byte of a turn, or no turn waited
        self.is_asked_again = False
        self.is_examined = False
        self.was_met_before = False
        self.wake = asyncio.Event()
        self.was_probed = asyncio.Event()
        self.watching: asyncio.Task[None] | None = None

    @property
    def can_decode(self) -> bool:
        """Whether turns are answered by it."""
        return self.plan.role is not Role.PREFILL

    @property
    def is_up(self) -> bool:
        """Whether it was met and is not lost; it may be draining."""
        return self.state is WorkerState.UP

    @property
    def takes_turns(self) -> bool:
        """Whether it is up and given turns, be it on trial."""
        return self.is_up and self.wanted_admission in (Admission.ANY, Admission.TRIAL)

    @property
    def wanted_admission(self) -> Admission:
        """Which turns it should be given, as things stand."""
        if self.is_draining:
            return Admission.NONE_DRAINING
        if self.breaker.state is BreakerState.OPEN:
            return Admission.NONE_FAILING
        return Admission.TRIAL if self.breaker.state is BreakerState.HALF_OPEN else Admission.ANY

    @property
    def standing(self) -> dict[str, str]:
        """State, circuit breaker and the reason of whatever is not as it should be."""
        is_draining = self.is_draining and self.is_up
        standing = {
            "state": "draining" if is_draining else self.state.value,
            "breaker": self.breaker.state.value,
        }
        reason = self.reason or (self.breaker.reason if self.is_up else "")
        if reason:
            standing["reason"] = reason
        return standing

    def silent_s(self, now: float) -> float:
        """For how long turns have waited without a byte from the worker; to be asked often."""
        is_awaited, was_heard = self.look()
        if was_heard or not is_awaited:
            self.heard_at_s = self.progress_at_s = now
        return now - self.heard_at_s

    def close(self) -> None:
        """Close every connection; turns under way hear that they broke."""
        self.pool.close()
        self.control.close()
