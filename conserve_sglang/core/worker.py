"""What the scheduler knows of a worker before any load reaches it."""

from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.ids import TierName, WorkerId


class Role(Enum):
    """Which phases a worker serves."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"

    __hash__ = object.__hash__  # members are one of a kind, and Enum's own is Python code


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker, as it stands in the tier map and as it reported itself at start.

    `kv_capacity_tokens` is the size of its KV pool; on prefillers it is informative only.
    `max_context_tokens`: it is there for contexts of at most so many tokens; None: for any.
    """

    worker_id: WorkerId
    role: Role
    tier: TierName
    kv_capacity_tokens: int
    max_context_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kv_capacity_tokens <= 0:
            raise ValueError(f"{self.worker_id}: kv_capacity_tokens must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker says of its own load; None where it does not say.

    `held_tokens` is all KV it holds, that of idle conversations included (the plugin's figure);
    `used_tokens` is that of running turns only (SGLang's own).
    """

    held_tokens: int | None
    used_tokens: int | None
    num_running: int | None
    num_waiting: int | None
