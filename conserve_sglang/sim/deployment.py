"""What is simulated."""

from dataclasses import dataclass, field

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import PlacementPolicy
from conserve_sglang.sim.worker_spec import SimWorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoss:
    """A worker is gone from `at_s` on, its KV with it, and does nothing more; the router notices
    `noticed_after_s` later, and until then may still send turns there. It comes back empty
    `back_after_s` after it was noticed, its start-up included, which no profile tells; None: it
    does not."""

    worker_id: WorkerId
    at_s: float
    noticed_after_s: float = 0.0
    back_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is simulated. `says_goodbye`: clients tell the router when a conversation is over.
    `losses`: workers that are lost on the way."""

    workers: tuple[SimWorkerSpec, ...]
    policy: PlacementPolicy
    settings: DispatchSettings = field(default_factory=DispatchSettings)
    says_goodbye: bool = True
    losses: tuple[WorkerLoss, ...] = ()
