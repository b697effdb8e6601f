"""The power controller: a state machine without I/O that keeps a deployment under its budget.

`handle(observation)` is called once a period and answers with moves. The law, in this order:

1. *Stale or nothing measured*: every cap goes back to the launch's, admission is free. A cap that
   nobody watches is not held.
2. *Over the budget*: caps go down at once, so far that what all GPUs can draw at most fits the
   budget less `hysteresis`: whatever the demand does next, the budget then holds by the hardware.
   Lowered is first the tier whose SLO costs least (decode, mixed, prefill), down to where its SLO
   was last seen to break; if that does not do, fewer turns may run (`admission_cut`), and meanwhile
   caps go below those floors, in the same order. The budget comes before the SLO, and only then.
3. *An SLO is broken and a cap may be the reason* (it binds; the SLO is not broken without caps
   too): that tier goes up a step at once, if the budget has room; else another tier, whose SLO is
   met, pays for it; else, for the TBT, fewer turns may run, one cut in `latency_window_s`. (A bound
   makes turns wait, which is no cure for a TTFET.) Where it broke is remembered for `slo_memory_s`,
   as the floor of 2.
4. *Room in the budget*: what was moved last comes back first: admission, then prefill, then decode,
   one step of `step_w` each `dwell_s`, if the measured power plus the whole step stays below the
   budget less `hysteresis`, or the caps' sum does. A cap that does not bind stays. If the budget is
   broken, or admission cut, within a dwell after a raise, the dwell doubles, up to `max_dwell_s`.

Nothing is integrated, so nothing winds up at a bound. With a target of J per output token the caps
have ceilings besides (`energy_target.py`). The SLO's floors are learnt, not predicted: a break of
one window is how they are learnt.
"""

from dataclasses import dataclass, replace

from conserve_sglang.core.worker import Role
from conserve_sglang.power.energy_target import EnergySettings, EnergyTarget
from conserve_sglang.power.observation import (
    AdmissionMove,
    CapMove,
    Latency,
    Move,
    Observation,
    Reason,
    TierReading,
    total_cap_w,
)


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


@dataclass(slots=True)
class _Slo:
    """Of one role: whether it is broken now, and for whom a floor is remembered."""

    target_s: float | None
    name: Reason
    is_broken: bool = False
    is_met: bool = True
    is_excused: bool = False  # it was broken without a cap, and was not met since


class PowerController:
    """One deployment's. Its state is what has happened; `max_running` is the admission in force."""

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self.max_running: int | None = None
        self.is_infeasible = False
        self._tbt = _Slo(settings.tbt_slo_s, Reason.TBT_SLO)
        self._ttfet = _Slo(settings.ttfet_slo_s, Reason.TTFET_SLO)
        self._energy = None if settings.energy is None else EnergyTarget(settings.energy)
        self._floors: dict[str, tuple[float, float]] = {}  # tier: watts, until
        self._dwell_s = settings.dwell_s
        self._raised_at_s = float("-inf")
        self._moved_at_s = float("-inf")
        self._cut_at_s = self._admitted_at_s = float("-inf")
        self._num_over = 0
        self._caps: dict[str, float] = {}
        self._moves: list[Move] = []

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
            return tuple(self._moves)
        self._judge(self._tbt, seen.tbt, seen)
        self._judge(self._ttfet, seen.ttfet, seen)
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
        self._num_over += 1
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

    def _judge(self, slo: _Slo, latency: Latency | None, seen: Observation) -> None:
        known = latency is not None and latency.num_samples >= self.settings.min_samples
        if slo.target_s is None or not known or latency is None:
            slo.is_broken, slo.is_met = False, True
            return
        slo.is_broken = latency.p95_s > self.settings.slo_guard * slo.target_s
        slo.is_met = latency.p95_s <= 0.8 * slo.target_s
        mine = [reading for reading in seen.levers if self._slo_of(reading) is slo]
        is_free = self.max_running is None and all(each.cap_w >= each.base_w for each in mine)
        slo.is_excused = slo.is_broken and (slo.is_excused or is_free)
        slo.is_broken = slo.is_broken and not slo.is_excused

    def _spare_slo(self, seen: Observation) -> bool:
        """Whether something was moved, or must not be, for an SLO's sake."""
        for reading in seen.levers:
            slo = self._slo_of(reading)
            is_reason = reading.is_bound and self._caps[reading.tier] < reading.base_w
            if not (slo.is_broken and is_reason):
                continue
            if self._energy is not None:
                self._energy.raise_for_slo(reading, seen.at_s)
            wanted_w = min(
                self._ceiling_w(reading), self._caps[reading.tier] + self.settings.step_w
            )
            until_s = seen.at_s + self.settings.slo_memory_s
            self._floors[reading.tier] = (wanted_w, until_s)
            why = f"the {slo.name.value.split('_')[0].upper()} SLO is broken under this cap"
            if self._has_room(seen, reading, wanted_w) or self._paid(seen, reading, wanted_w, why):
                self._set(reading, wanted_w, slo.name, why)
            elif slo is self._tbt:
                wait_s = self.settings.latency_window_s
                self._cut_admission(seen, slo.name, f"{why}, and no other tier can pay", wait_s)
            return True
        return False

    def _paid(self, seen: Observation, payee: TierReading, wanted_w: float, why: str) -> bool:
        """Have another tier, whose own SLO is met, give the watts that `payee` needs."""
        caps = {**self._caps, payee.tier: wanted_w}
        excess_w = total_cap_w(seen.levers, caps) - self._fits_w(seen)
        for reading in seen.levers:
            slo = self._slo_of(reading)
            if reading.tier == payee.tier or slo.name is self._slo_of(payee).name or not slo.is_met:
                continue
            lowered_w = float(int(self._caps[reading.tier] - excess_w / reading.num_gpus))
            if lowered_w >= max(reading.least_w, self._floor_w(reading, seen.at_s)):
                self._set(reading, lowered_w, self._slo_of(payee).name, f"{why}: pays {payee.tier}")
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
            if raised_w > cap_w and self._has_room(seen, reading, raised_w):
                self._set(reading, raised_w, Reason.HEADROOM, why)
                self._raised_at_s = seen.at_s
                return

    def _admit_more(self, seen: Observation, why: str) -> None:
        assert self.max_running is not None
        is_spared = not (self._tbt.is_broken or self._ttfet.is_broken)
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

    def _has_room(self, seen: Observation, reading: TierReading, raised_w: float) -> bool:
        """Whether a tier may have this cap: by the caps' sum, or by what is measured."""
        caps = {**self._caps, reading.tier: raised_w}
        fits_w = self._fits_w(seen)
        if total_cap_w(seen.levers, caps) <= fits_w:
            return True
        step_w = (raised_w - reading.cap_w) * reading.num_gpus
        budget_w = self.settings.power_budget_w or float("inf")
        has_room = seen.watts + step_w <= budget_w * (1 - self.settings.hysteresis)
        return has_room and reading.is_bound and not self._moves

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

    def _slo_of(self, reading: TierReading) -> _Slo:
        return self._ttfet if reading.role is Role.PREFILL else self._tbt

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
        """Move a tier's cap; two moves of one period become one."""
        before_w = self._caps[reading.tier]
        if watts == before_w:
            return
        self._caps[reading.tier] = watts
        move = CapMove(tier=reading.tier, before_w=before_w, after_w=watts, reason=reason, why=why)
        for index, made in enumerate(self._moves):
            if isinstance(made, CapMove) and made.tier == reading.tier:
                self._moves[index] = replace(move, before_w=made.before_w)
                return
        self._moves.append(move)
