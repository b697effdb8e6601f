"""What is to be planned, all together."""

from dataclasses import dataclass, replace

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.inventory import Inventory
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.problem import Limits, Objective

KWH_A_DAY = 24 / 1000
"""Of a watt that is always drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Latency targets in seconds, None: no such target, which a share `level` of all
    conversations must keep: the `level` quantile lies below them."""

    level: float = 0.95
    ttfet_s: float | None = None
    tbt_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """GPUs to choose from, the load and the targets. `hardware`: each tier's ways to equip a
    worker, of those that there are profiles of.

    `power_budget_w`: what all chosen GPUs may draw at most (caps, or rated power). `mean_power_w`:
    what they may draw on average, which is the energy budget over its time. `fewest`: so many
    conversations at least has a run that a fleet is judged by (`judging`).
    """

    inventory: Inventory
    hardware: tuple[Hardware, ...]
    load: Load
    targets: Targets
    objective: Objective = Objective.TOKENS_PER_JOULE
    power_budget_w: float | None = None
    mean_power_w: float | None = None
    seed: int = 0
    fewest: int = 2000

    def limits(self, load_per_s: float | None = None) -> Limits:
        """The limits of its integer program. `load_per_s` takes the demanded load's place."""
        demanded = self.load.rate_per_s if load_per_s is None else load_per_s
        seeks_load = self.objective is Objective.LOAD
        return Limits(
            load_per_s=0.0 if seeks_load else demanded,
            gpus=tuple(limit for tier in self.inventory.tiers for limit in tier.limits()),
            peak_w=self.power_budget_w,
            mean_w=self.mean_power_w,
            ttfet_s=self.targets.ttfet_s,
            tbt_s=self.targets.tbt_s,
            e2e_s=self.targets.e2e_s,
        )

    @property
    def is_below_gaps(self) -> bool:
        """Whether a target is asked for that tool gaps alone exceed."""
        gaps_s, targets = self.load.gaps_s(self.targets.level), self.targets
        return any(s is not None and s <= gaps_s for s in (targets.ttfet_s, targets.e2e_s))

    @property
    def gaps_note(self) -> str:
        """What of TTFET and E2E no GPU shortens; empty where there are no tool gaps."""
        if not self.load.has_gaps:
            return ""
        targets, level = self.targets, self.targets.level
        gaps_s = self.load.gaps_s(level)
        at = f"{gaps_s:,.4g} s of a conversation at p{level * 100:g}"
        told = f"TTFET and E2E hold the tool gaps: {at}"
        asked = (("TTFET", targets.ttfet_s), ("E2E", targets.e2e_s))
        short = [f"{name} target of {s:g} s" for name, s in asked if s is not None and s <= gaps_s]
        if not short:
            return told
        return f"{told}, so no fleet keeps the {' and the '.join(short)}"

    def allows(self, hardware: Hardware, role: Role) -> bool:
        """Whether the inventory lets these GPUs serve in a role."""
        return any(
            tier.name == hardware.tier and role in tier.roles for tier in self.inventory.tiers
        )

    def with_only(self, tier: str) -> "Request":
        """The same with one tier alone."""
        return replace(self, hardware=tuple(one for one in self.hardware if one.tier == tier))

    def without_caps(self) -> "Request":
        """The same with every GPU as delivered: no caps, no locked clocks."""
        return replace(
            self,
            hardware=tuple(
                one for one in self.hardware if one.sm_clock_mhz is None and not is_capped(one)
            ),
        )


def is_capped(hardware: Hardware) -> bool:
    """Whether a power cap below the rated power holds."""
    return hardware.power_cap_w is not None and (
        hardware.rated_w is None or hardware.power_cap_w < hardware.rated_w
    )
