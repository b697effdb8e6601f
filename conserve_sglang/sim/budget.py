"""The third executor of the power controller: in virtual time, on simulated workers.

Once a second it observes what the workers drew and how late turns were, all modelled, and carries
the law's moves out: another cap is the tier's profile with that cap put on it (`profiles/knobs.py`,
estimated), and from its next step on the worker goes by that. A cap is obeyed at the end of the
step in progress, so a prefill chunk that has begun draws what it began with.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import Tier, TierMap
from conserve_sglang.dispatch import RunningBounded
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.from_tier_map import control_settings
from conserve_sglang.power.latency_window import recent_latency
from conserve_sglang.power.observation import CapMove, Latency, Move, Observation, TierReading
from conserve_sglang.profiles import Profile
from conserve_sglang.profiles.hardware import least_cap_w
from conserve_sglang.profiles.knobs import with_knobs
from conserve_sglang.sim.driver import Simulation
from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.playing import Playing
from conserve_sglang.sim.view import perf_model_of

PERIOD_S = 1.0
Sample = tuple[float, float, float]
LEAST_SHARE = 200 / 700
"""The least cap over the rated power where a GPU's own is not known: as an H100 has it, 200 to
700 W (assumed)."""
_STILL_S = 3600.0  # nothing has happened for so long: the simulation is told to be stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSummary:
    """What became of the budgets, modelled: periods, those above the one of power, moves by reason,
    and the end."""

    power_budget_w: float | None
    energy_budget_j_per_output_token: float | None
    num_periods: int
    num_over: int
    max_w: float
    mean_w: float
    num_moves: dict[str, int]
    caps_w: dict[str, float]
    max_running: int | None
    is_infeasible: bool


class SimulatedBudget:
    """Controls one simulation from `attach` on. ProfileError for a profile without watts."""

    def __init__(
        self,
        tier_map: TierMap,
        profiles: Mapping[str, Profile],
        settings: ControlSettings | None = None,
    ) -> None:
        self.controller = PowerController(settings or control_settings(tier_map))
        self._tiers = {tier.name: _SimTier(tier, profiles[tier.name]) for tier in tier_map.tiers}
        self._tbt: deque[Sample] = deque()
        self._ttfet: deque[Sample] = deque()
        self._num_tokens = 0
        self._joules: dict[WorkerId, float] = {}
        self._num_moves: Counter[str] = Counter()
        self._quiet_since_s, self._num_events = 0.0, 0
        self.watts: list[float] = []
        self.moves: list[tuple[float, Move]] = []
        self._simulation: Simulation

    def attach(self, simulation: Simulation) -> None:
        """Begin before its conversations are played."""
        self._simulation = simulation
        simulation.on_turn = self._turn_answered
        for worker in simulation.workers.values():
            worker.joins_chunks = False
            self._tiers[worker.spec.tier].workers.append(worker.spec.worker_id)
        self._await_next(0.0)

    def summary(self) -> BudgetSummary:
        """So far."""
        settings = self.controller.settings
        budget_w, energy = settings.power_budget_w, settings.energy
        over = [] if budget_w is None else [watts for watts in self.watts if watts > budget_w]
        return BudgetSummary(
            power_budget_w=budget_w,
            energy_budget_j_per_output_token=None if energy is None else energy.j_per_output_token,
            num_periods=len(self.watts),
            num_over=len(over),
            max_w=max(self.watts, default=0.0),
            mean_w=sum(self.watts) / len(self.watts) if self.watts else 0.0,
            num_moves=dict(sorted(self._num_moves.items())),
            caps_w={str(name): tier.cap_w for name, tier in self._tiers.items()},
            max_running=self.controller.max_running,
            is_infeasible=self.controller.is_infeasible,
        )

    # inside

    def _await_next(self, now: float) -> None:
        simulation = self._simulation
        if simulation.num_events != self._num_events:
            self._num_events, self._quiet_since_s = simulation.num_events, now
        if now - self._quiet_since_s < _STILL_S:
            simulation.kernel.at(now + PERIOD_S, self._look)

    def _look(self, now: float) -> None:
        if self._simulation.is_over:
            return
        seen = self._observe(now)
        self.watts.append(seen.watts)
        for move in self.controller.handle(seen):
            self._num_moves[move.reason.value] += 1
            self.moves.append((now, move))
            if isinstance(move, CapMove):
                tier = self._tiers[TierName(move.tier)]
                perf = tier.capped(move.after_w)
                for name in tier.workers:
                    self._simulation.workers[name].change(perf, now)
            else:
                self._simulation.tell(RunningBounded(num_turns=move.after))
        self._await_next(now)

    def _observe(self, now: float) -> Observation:
        num_tokens, self._num_tokens = self._num_tokens, 0
        readings = tuple(self._reading(name, tier, now) for name, tier in self._tiers.items())
        dispatcher = self._simulation.dispatcher
        return Observation(
            at_s=now,
            measured_at_s=now,
            tiers=readings,
            joules=sum(reading.watts for reading in readings) * PERIOD_S,
            output_tokens=num_tokens,
            tbt=self._latency(self._tbt, now),
            ttfet=self._latency(self._ttfet, now),
            num_running=dispatcher.num_open_turns - dispatcher.num_queued,
        )

    def _reading(self, name: TierName, tier: "_SimTier", now: float) -> TierReading:
        workers = self._simulation.workers
        watts = []
        for each in tier.workers:
            joules = workers[each].joules_by(now)
            watts.append((joules - self._joules.get(each, 0.0)) / PERIOD_S)
            self._joules[each] = joules
        return TierReading(
            tier=name,
            role=tier.tier.role,
            num_gpus=len(tier.workers) * tier.tier.tp,
            watts=sum(watts),
            most_w=max(watts) / tier.tier.tp,
            cap_w=tier.cap_w,
            base_w=tier.base_w,
            least_w=tier.least_w,
        )

    def _latency(self, samples: deque[Sample], now: float) -> Latency | None:
        law = self.controller
        window_s = law.settings.latency_window_s
        while samples and samples[0][1] < now - window_s:
            samples.popleft()
        return recent_latency(samples, now, moved_at_s=law.moved_at_s, window_s=window_s)

    def _turn_answered(self, playing: Playing, now: float) -> None:
        turn = playing.records[-1]
        self._num_tokens += turn.output_tokens
        if turn.output_tokens > 1:
            gap_s = (now - turn.first_token_at_s) / (turn.output_tokens - 1)
            self._tbt.append((turn.first_token_at_s, now, gap_s))
        if len(playing.records) == len(playing.plan.turns):
            began_at_s = playing.records[0].arrived_at_s
            self._ttfet.append((began_at_s, now, turn.first_token_at_s - began_at_s))


class _SimTier:
    """A tier, its profile, and the unit costs under each cap it has had."""

    def __init__(self, tier: Tier, profile: Profile) -> None:
        self.tier = tier
        self.workers: list[WorkerId] = []
        self._profile = profile
        rated_w = profile.tdp_w or profile.power_cap_w or 0.0
        self.base_w = float(profile.power_cap_w or rated_w)
        least_w = least_cap_w(profile.gpu) or float(ceil(LEAST_SHARE * rated_w))
        self.least_w = min(self.base_w, least_w)
        self.cap_w = self.base_w
        self._perfs: dict[float, PerfModel] = {self.base_w: perf_model_of(profile)}
        self.capped(self.least_w)  # refused here and now, if it cannot be told
        self.cap_w = self.base_w

    def capped(self, watts: float) -> PerfModel:
        """Its unit costs under a cap, which is in force from now on."""
        self.cap_w = watts
        if watts not in self._perfs:
            perf = perf_model_of(with_knobs(self._profile, power_cap_w=watts))
            self._perfs[watts] = within_cap(perf, watts * self.tier.tp)
        return self._perfs[watts]


def within_cap(perf: PerfModel, cap_w: float) -> PerfModel:
    """Unit costs of a worker that never draws more than `cap_w` in all: beyond the profile's points
    the closed form of a decode step would."""
    return replace(perf, power=perf.power and replace(perf.power, most_w=cap_w))
