"""What the power controller makes of a latency: met, broken, or not known yet. Pure.

A latency counts only if all of it came after the last move (`Latency.since_s`), or if a whole
window has passed since. Otherwise each period would act anew on turns served before the move.
"""

from dataclasses import dataclass

from conserve_sglang.core.worker import Role
from conserve_sglang.power.observation import Latency, Observation, Reason

ROLES = {
    Reason.TBT_SLO: (Role.DECODE, Role.MIXED),
    Reason.TTFET_SLO: (Role.PREFILL, Role.MIXED, Role.DECODE),
}
"""Who serves what an SLO bounds, the role first to which a watt is worth most."""


@dataclass(slots=True, kw_only=True)
class Slo:
    """One SLO, the tiers whose caps can break it, and the last verdict on it.

    `roles`: those that serve what it bounds, the one first to which a watt is worth most. `guard`:
    it counts as broken from this share of it on. `is_pending`: there was a move, and too few
    samples came since; `was_broken` then keeps what was known before. `is_excused`: it was broken
    without a cap, and was not met since.
    """

    target_s: float | None
    name: Reason
    roles: tuple[Role, ...]
    guard: float
    min_samples: int
    window_s: float
    is_broken: bool = False
    is_met: bool = True
    is_pending: bool = False
    was_broken: bool = False
    is_excused: bool = False

    def judge(self, seen: Observation, *, moved_at_s: float, is_bounded: bool) -> None:
        """Take in what was seen. `is_bounded`: fewer turns may run than fit."""
        if self.target_s is None:
            return
        latency = self._counting(seen, moved_at_s)
        if latency is None:
            self.is_pending = seen.at_s - moved_at_s < self.window_s
            self.is_broken = False
            self.is_met = not self.is_pending
            self.was_broken = self.was_broken and self.is_pending
            return
        self.is_pending = False
        is_broken = latency.p95_s > self.guard * self.target_s
        self.is_met = latency.p95_s <= 0.8 * self.target_s
        mine = [reading for reading in seen.levers if reading.role in self.roles]
        is_free = not is_bounded and all(each.cap_w >= each.base_w for each in mine)
        self.is_excused = is_broken and (self.is_excused or is_free)
        self.is_broken = self.was_broken = is_broken and not self.is_excused

    def _counting(self, seen: Observation, moved_at_s: float) -> Latency | None:
        """What was seen, if there is enough of it from after the last move."""
        latency = seen.tbt if self.name is Reason.TBT_SLO else seen.ttfet
        if latency is None or latency.num_samples < self.min_samples:
            return None
        is_new = latency.since_s >= moved_at_s or seen.at_s - moved_at_s >= self.window_s
        return latency if is_new else None
