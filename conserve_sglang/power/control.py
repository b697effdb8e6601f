"""The power controller: a state machine without I/O that keeps a deployment under its budget.

`handle(observation)` is called once a period and answers with moves. The law, in this order:

1. *Stale or nothing measured*: every cap goes back to the launch's, admission is free. A cap that
   nobody watches is not held.
   A reading that is no newer than the last one moves nothing else: it was acted on.
2. *Over the budget*: caps go down at once, so far that what all GPUs can draw at most fits the
   budget less `hysteresis`: whatever the demand does next, the budget then holds by the hardware.
   Lowered is first the tier whose SLO costs least (decode, mixed, prefill), down to where its SLO
   was last seen to break; if that does not do, fewer turns may run (`admission_cut`), and meanwhile
   caps go below those floors, in the same order. The budget comes before the SLO, and only then.
3. *An SLO is broken and a cap may be the reason* (one GPU at its cap is enough; the SLO is not
   broken without caps too). TBT is what decode and mixed tiers take, TTFET what all take: it has
   each turn of a conversation but the last one's decode in it. The first such tier, in the order
   prefill, mixed, decode, goes up a step if the budget has room; else another tier pays for it, one
   whose SLOs are met, or of the same SLO one to which a watt is worth less; else it gets what room
   there is. If there is none, fewer turns may run, for the TBT, one cut in `latency_window_s`. (A
   bound makes turns wait, which is no cure for a TTFET.) Where it broke is remembered for
   `slo_memory_s`, as the floor of 2. After any move only latencies count that are of after it
   (`slo.py`): until there are `min_samples` of them, or a window is over, nothing is moved for an
   SLO's sake, no tier pays whose own SLO is in doubt, and nothing is raised while an SLO was broken
   when last known.
4. *Room in the budget*: what was moved last comes back first: admission, then prefill, then decode,
   one step of `step_w` each `dwell_s`, if the measured power plus the whole step stays below the
   budget less `hysteresis`, or the caps' sum does. A cap that does not bind stays. If the budget is
   broken, or admission cut, within a dwell after a raise, the dwell doubles, up to `max_dwell_s`.

Nothing is integrated, so nothing winds up at a bound. With a target of J per output token the caps
have ceilings besides (`energy_target.py`). The SLO's floors are learnt, not predicted: a break of
one window is how they are learnt.
"""

from dataclasses import dataclass, replace

from conserve_sglang.power.energy_target import EnergySettings, EnergyTarget
from conserve_sglang.power.observation import (
    SLO_COST,
    AdmissionMove,
    CapMove,
    Move,
    Observation,
    Reason,
    TierReading,
    total_cap_w,
)
from conserve_sglang.power.slo import ROLES, Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Budgets, SLOs and the law's constants; ENERGY.md 4.3 names steps, dwell and hysteresis.

    `slo_guard`: an SLO counts as broken from this share of it on. `not_obeyed_periods`: over the
    budget for so long although the caps do not allow it, the excess is taken off them too.
    """

    power_budget_w: float | None = None
    energy: EnergySettings | None = None
    ttfet_slo_s: float | None = None
    tbt_slo_s: float | None = None
    step_w: float = 25.0
    hysteresis: float = 0.04
    dwell_s: float = 5.0
    max_dwell_s: float = 60.0
    stale_s: float = 3.0
    slo_guard: float = 0.95
    slo_memory_s: float = 60.0
    min_samples: int = 5
    admission_cut: float = 0.8
    latency_window_s: float = 30.0
    not_obeyed_periods: int = 3


class PowerController:
    """One deployment's. Its state is what has happened; `max_running` is the admission in force."""

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self.max_running: int | None = None
        self.is_infeasible = False
        self._tbt = _slo(settings, Reason.TBT_SLO)
        self._ttfet = _slo(settings, Reason.TTFET_SLO)
        self._energy = None if settings.energy is None else EnergyTarget(settings.energy)
        self._floors: dict[str, tuple[float, float]] = {}  # tier: watts, until
        self._dwell_s = settings.dwell_s
        self._raised_at_s = float("-inf")
        self._moved_at_s = self._measured_at_s = float("-inf")
        self._cut_at_s = self._admitted_at_s = float("-inf")
        self._num_over = 0
        self._caps: dict[str, float] = {}
        self._moves: list[Move] = []

    @property
    def moved_at_s(self) -> float:
        """When it last moved something: latencies should be of what came after."""
        return self._moved_at_s

    @property
    def j_per_output_token(self) -> float | None:
        """As the last window had it, if there is a target for it."""
        return None if self._energy is None else self._energy.j_per_token

    def handle(self, seen: Observation) -> tuple[Move, ...]:
        """What to move now, in order."""
        self._moves = []
        self._caps = {reading.tier: reading.cap_w for reading in seen.levers}
        if seen.measured_at_s is None or seen.at_s - seen.measured_at_s > self.settings.stale_s:
            self._release(seen)
            return self._made(seen)
        if seen.measured_at_s <= self._measured_at_s:
            return ()
        self._measured_at_s = seen.measured_at_s
        for slo in (self._tbt, self._ttfet):
            is_bounded = self.max_running is not None
            slo.judge(seen, moved_at_s=self._moved_at_s, is_bounded=is_bounded)
        if self._energy is not None:
            self._energy.observe(seen)
            self._obey_ceilings(seen, self._energy)
        budget_w = self.settings.power_budget_w
        if budget_w is not None and seen.watts > budget_w:
            self._tighten(seen, budget_w)
        else:
            self._num_over, self.is_infeasible = 0, False
            if not self._spare_slo(seen):
                self._relax(seen)
        return self._made(seen)

    def _made(self, seen: Observation) -> tuple[Move, ...]:
        if self._moves:
            self._moved_at_s = seen.at_s
        return tuple(self._moves)

    # 1

    def _release(self, seen: Observation) -> None:
        why = "no measurement that is fresh enough"
        for reading in reversed(seen.levers):
            self._set(reading, reading.base_w, Reason.STALE, why)
        self._admit(None, Reason.STALE, why)
        if self._energy is not None:
            self._energy.forget()
        self._num_over = 0

    # 2

    def _tighten(self, seen: Observation, budget_w: float) -> None:
        self._doubt_raise(seen)
        self._num_over += seen.measured_at_s is not None and seen.measured_at_s > self._moved_at_s
        fits_w = self._fits_w(seen)
        if self._num_over > self.settings.not_obeyed_periods:
            fits_w = min(fits_w, total_cap_w(seen.levers, self._caps)) - (seen.watts - budget_w)
        why = f"{seen.watts:.0f} W drawn, {budget_w:g} W allowed"
        for reading in seen.levers:
            floor_w = max(reading.least_w, self._floor_w(reading, seen.at_s))
            self._lower(seen, reading, floor_w, fits_w, (Reason.OVER_BUDGET, why))
        if total_cap_w(seen.levers, self._caps) > fits_w + 1e-6:
            why += "; no cap is left to lower but at an SLO's cost"
            self._cut_admission(seen, Reason.OVER_BUDGET, why, self.settings.dwell_s)
            for reading in seen.levers:
                self._lower(seen, reading, reading.least_w, fits_w, (Reason.SLO_GIVEN_UP, why))
        self.is_infeasible = total_cap_w(seen.levers, self._caps) > fits_w + 1e-6

    def _doubt_raise(self, seen: Observation) -> None:
        """What was raised last may be why: wait longer before the next."""
        if seen.at_s - self._raised_at_s <= self._dwell_s:
            self._dwell_s = min(self.settings.max_dwell_s, 2 * self._dwell_s)
            self._raised_at_s = float("-inf")

    def _lower(
        self,
        seen: Observation,
        reading: TierReading,
        floor_w: float,
        fits_w: float,
        cause: tuple[Reason, str],
    ) -> None:
        """Take from one tier what is too much, as far as its floor, in whole watts."""
        excess_w = total_cap_w(seen.levers, self._caps) - fits_w
        cap_w = self._caps[reading.tier]
        if excess_w > 0 and cap_w > floor_w:
            lowered_w = float(int(cap_w - excess_w / reading.num_gpus + 1e-9))
            self._set(reading, max(floor_w, lowered_w), *cause)

    # 3

    def _spare_slo(self, seen: Observation) -> bool:
        """Whether something was moved, or must not be, for an SLO's sake."""
        for slo in (self._tbt, self._ttfet):
            if slo.is_broken and self._spare(slo, seen):
                return True
        return any(slo.is_pending and slo.was_broken for slo in (self._tbt, self._ttfet))

    def _spare(self, slo: Slo, seen: Observation) -> bool:
        blamed = [each for each in self._by_worth(seen, slo) if each.is_bound]
        blamed = [each for each in blamed if self._caps[each.tier] < each.base_w]
        why = f"the {slo.name.value.split('_')[0].upper()} SLO is broken under this cap"
        for reading in blamed:
            if self._energy is not None:
                self._energy.raise_for_slo(reading, seen.at_s)
            cap_w = self._caps[reading.tier]
            wanted_w = min(self._ceiling_w(reading), cap_w + self.settings.step_w)
            if wanted_w <= cap_w:
                continue
            room_w = self._room_w(seen, reading)
            if room_w < wanted_w - cap_w and not self._paid(slo, seen, reading, wanted_w, why):
                wanted_w = cap_w + int(room_w)
            if wanted_w > cap_w or reading is blamed[0]:
                broke_at_w = min(reading.base_w, cap_w + self.settings.step_w)
                self._floors[reading.tier] = (broke_at_w, seen.at_s + self.settings.slo_memory_s)
            if wanted_w > cap_w:
                self._set(reading, wanted_w, slo.name, why)
                return True
        if blamed and slo is self._tbt and not self._is_doubtful(slo):
            wait_s = self.settings.latency_window_s
            self._cut_admission(seen, slo.name, f"{why}, and no other tier can pay", wait_s)
        return bool(blamed)

    def _by_worth(self, seen: Observation, slo: Slo) -> list[TierReading]:
        """The tiers that can break an SLO, the one first to which a watt is worth most."""
        mine = [reading for reading in seen.levers if reading.role in slo.roles]
        return sorted(mine, key=lambda reading: slo.roles.index(reading.role))

    def _is_doubtful(self, slo: Slo) -> bool:
        """Whether another SLO's verdict is awaited: its tiers might pay then."""
        return any(each.is_pending for each in (self._tbt, self._ttfet) if each is not slo)

    def _paid(
        self, slo: Slo, seen: Observation, payee: TierReading, wanted_w: float, why: str
    ) -> bool:
        """Have another tier give the watts that `payee` needs, of those that may the cheapest."""
        caps = {**self._caps, payee.tier: wanted_w}
        excess_w = total_cap_w(seen.levers, caps) - self._fits_w(seen)
        for reading in seen.levers:
            is_other = reading.role not in slo.roles
            is_cheaper = SLO_COST[reading.role] < SLO_COST[payee.role]
            others = (each for each in (self._tbt, self._ttfet) if each is not slo)
            is_free = all(each.is_met for each in others if reading.role in each.roles)
            if reading.tier == payee.tier or not is_free or not (is_other or is_cheaper):
                continue
            lowered_w = float(int(self._caps[reading.tier] - excess_w / reading.num_gpus))
            if lowered_w >= max(reading.least_w, self._floor_w(reading, seen.at_s)):
                self._set(reading, lowered_w, slo.name, f"{why}: pays {payee.tier}")
                return True
        return False

    # 4

    def _relax(self, seen: Observation) -> None:
        calm_s = seen.at_s - self._moved_at_s
        if calm_s < self._dwell_s:
            return
        if calm_s > 2 * self.settings.max_dwell_s:
            self._dwell_s = self.settings.dwell_s
        why = f"{seen.watts:.0f} W drawn, there is room"
        if self.max_running is not None:
            self._admit_more(seen, why)
            return
        for reading in reversed(seen.levers):
            cap_w = self._caps[reading.tier]
            raised_w = min(self._ceiling_w(reading), cap_w + self.settings.step_w)
            if 0 < raised_w - cap_w <= self._room_w(seen, reading):
                self._set(reading, raised_w, Reason.HEADROOM, why)
                self._raised_at_s = seen.at_s
                return

    def _admit_more(self, seen: Observation, why: str) -> None:
        assert self.max_running is not None
        is_spared = not any(slo.is_broken or slo.is_pending for slo in (self._tbt, self._ttfet))
        if not is_spared or seen.at_s - self._cut_at_s < self._dwell_s:
            return
        more = int(self.max_running / self.settings.admission_cut) + 1
        is_unused = seen.num_running < self.settings.admission_cut * self.max_running
        self._admit(None if is_unused else more, Reason.HEADROOM, why)
        self._raised_at_s = self._admitted_at_s = seen.at_s

    # what moves are made of

    def _fits_w(self, seen: Observation) -> float:
        """What the caps' sum may be, so that the budget holds whatever is demanded."""
        budget_w = self.settings.power_budget_w
        if budget_w is None:
            return float("inf")
        fixed_w = seen.watts - sum(reading.watts for reading in seen.levers)
        return budget_w * (1 - self.settings.hysteresis) - fixed_w

    def _room_w(self, seen: Observation, reading: TierReading) -> float:
        """How far each GPU of a tier may go up: by the caps' sum, or by what is measured."""
        room_w = self._fits_w(seen) - total_cap_w(seen.levers, self._caps)
        if reading.is_bound and not self._moves:
            budget_w = self.settings.power_budget_w or float("inf")
            room_w = max(room_w, budget_w * (1 - self.settings.hysteresis) - seen.watts)
        return max(0.0, room_w) / reading.num_gpus

    def _floor_w(self, reading: TierReading, now_s: float) -> float:
        floor_w, until_s = self._floors.get(reading.tier, (0.0, 0.0))
        return min(floor_w, reading.base_w) if now_s < until_s else 0.0

    def _ceiling_w(self, reading: TierReading) -> float:
        return reading.base_w if self._energy is None else self._energy.ceiling_w(reading)

    def _obey_ceilings(self, seen: Observation, energy: EnergyTarget) -> None:
        for reading in seen.levers:
            ceiling_w = energy.ceiling_w(reading)
            if self._caps[reading.tier] > ceiling_w:
                self._set(reading, ceiling_w, Reason.ENERGY_TARGET, energy.why)

    def _cut_admission(self, seen: Observation, reason: Reason, why: str, wait_s: float) -> None:
        is_raised = self._admitted_at_s > self._cut_at_s  # that is taken back without a wait
        if not is_raised and seen.at_s - self._cut_at_s < wait_s:
            return
        self._doubt_raise(seen)
        now = seen.num_running if self.max_running is None else self.max_running
        fewer = max(1, int(min(now, max(1, seen.num_running)) * self.settings.admission_cut))
        if self.max_running is None or fewer < self.max_running:
            self._cut_at_s = seen.at_s
            self._admit(fewer, reason, why)

    def _admit(self, num_turns: int | None, reason: Reason, why: str) -> None:
        if num_turns != self.max_running:
            move = AdmissionMove(before=self.max_running, after=num_turns, reason=reason, why=why)
            self._moves.append(move)
            self.max_running = num_turns

    def _set(self, reading: TierReading, watts: float, reason: Reason, why: str) -> None:
        """Move a tier's cap; two moves of one period become one, or none if they cancel out."""
        before_w = self._caps[reading.tier]
        if watts == before_w:
            return
        self._caps[reading.tier] = watts
        move = CapMove(tier=reading.tier, before_w=before_w, after_w=watts, reason=reason, why=why)
        for index, made in enumerate(self._moves):
            if isinstance(made, CapMove) and made.tier == reading.tier:
                self._moves[index : index + 1] = (
                    [replace(move, before_w=made.before_w)] if watts != made.before_w else []
                )
                return
        self._moves.append(move)


def _slo(settings: ControlSettings, name: Reason) -> Slo:
    return Slo(
        target_s=settings.tbt_slo_s if name is Reason.TBT_SLO else settings.ttfet_slo_s,
        name=name,
        roles=ROLES[name],
        guard=settings.slo_guard,
        min_samples=settings.min_samples,
        window_s=settings.latency_window_s,
    )
