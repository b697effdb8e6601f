"""What the power controller is told once a period, and what it answers. Values; pure.

Watts are means over the period before `measured_at_s`, seconds are of one monotonic clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from conserve_sglang.core.worker import Role

# The paper's asymmetry: decode is bound by memory and loses least by a cap, prefill most.
SLO_COST = {Role.DECODE: 0, Role.MIXED: 1, Role.PREFILL: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReading:
    """The GPUs of one tier: what they draw together, and the power cap of each.

    `base_w` is the cap of the launch, which no move goes above, `least_w` the least the GPUs can
    have. `is_held` False: nobody of us may set them (no permission, a foreign change, no cap at
    all); what they draw counts all the same. `most_w`: what that one draws that draws most; None:
    not known, and all are taken as alike.
    """

    tier: str
    role: Role
    num_gpus: int
    watts: float
    cap_w: float
    base_w: float
    least_w: float
    is_held: bool = True
    most_w: float | None = None

    @property
    def is_bound(self) -> bool:
        """Whether the cap is what holds any of these GPUs down, as far as its power shows."""
        mean_w = self.watts / self.num_gpus
        return max(mean_w, self.most_w or 0.0) >= 0.95 * self.cap_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A latency's 95th percentile in seconds, of so many samples, all from `since_s` on."""

    p95_s: float
    num_samples: int
    since_s: float = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at the deployment.

    `other_w` is drawn by measured devices without a cap. `joules` and `output_tokens` are those
    since the last observation. `measured_at_s` None: nothing was measured.
    """

    at_s: float
    measured_at_s: float | None
    tiers: tuple[TierReading, ...]
    other_w: float = 0.0
    joules: float = 0.0
    output_tokens: int = 0
    ttfet: Latency | None = None
    tbt: Latency | None = None
    num_running: int = 0

    @property
    def watts(self) -> float:
        """What the deployment draws."""
        return self.other_w + sum(reading.watts for reading in self.tiers)

    @property
    def levers(self) -> tuple[TierReading, ...]:
        """The tiers whose caps can be moved, those that cost the SLO least first."""
        held = (reading for reading in self.tiers if reading.is_held)
        return tuple(sorted(held, key=lambda reading: (SLO_COST[reading.role], reading.tier)))


class Reason(Enum):
    """Why the controller moves something."""

    OVER_BUDGET = "over_budget"
    SLO_GIVEN_UP = "slo_given_up"  # the budget leaves no move that spares the SLO
    TBT_SLO = "tbt_slo"
    TTFET_SLO = "ttfet_slo"
    HEADROOM = "headroom"
    ENERGY_TARGET = "energy_target"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapMove:
    """Each GPU of a tier gets this power cap."""

    tier: str
    before_w: float
    after_w: float
    reason: Reason
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionMove:
    """So many turns may run at once from now on; None: as many as fit."""

    before: int | None
    after: int | None
    reason: Reason
    why: str


Move = CapMove | AdmissionMove


def total_cap_w(readings: Iterable[TierReading], caps: dict[str, float]) -> float:
    """The most these tiers can draw under these caps."""
    return sum(reading.num_gpus * caps[reading.tier] for reading in readings)
