"""Runs the power controller over the deployment: observes, has it decide, carries its moves out.

Once a second. What the agents measured, their GPUs' caps and the router's own latencies become an
observation; cap moves go to the agents, which hold them under a lease, so that a router that is
gone gives the caps back; admission goes to the dispatcher.
"""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import Tier, TierMap
from conserve_sglang.dispatch import Event, RunningBounded
from conserve_sglang.energy.control_log import ControlLog, move_as_json
from conserve_sglang.power.control import PowerController
from conserve_sglang.power.from_tier_map import control_settings
from conserve_sglang.power.latency_window import recent_latency
from conserve_sglang.power.observation import (
    SLO_COST,
    CapMove,
    Latency,
    Move,
    Observation,
    TierReading,
)
from conserve_sglang.router.agents import AgentLink, Drawn, HeldCap, ask_all, links
from conserve_sglang.serving.ending import ended
from conserve_sglang.telemetry.logs import told
from conserve_sglang.telemetry.metrics import RouterMetrics, Sample
from conserve_sglang.telemetry.power import PowerReading

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
KEPT_MOVES = 100


class Running(Protocol):
    """What is read of the dispatcher."""

    @property
    def num_open_turns(self) -> int: ...
    @property
    def num_queued(self) -> int: ...


class PowerTask:
    """The controller of one deployment; made only where the tier map has a budget."""

    def __init__(
        self,
        tier_map: TierMap,
        *,
        tell: Callable[[Event], None],
        running: Running,
        metrics: Callable[[], RouterMetrics],
        admin_key: str | None,
    ) -> None:
        assert tier_map.energy is not None
        self._settings = control_settings(tier_map)
        self._controller = PowerController(self._settings)
        self._tell = tell
        self._running = running
        self._metrics = metrics
        self._agents = links(tier_map, admin_key)
        tiers = {tier.name: tier for tier in tier_map.tiers}
        self._tier_of = {worker.worker_id: tiers[worker.tier] for worker in tier_map.workers}
        self._gpus: dict[str, dict[str, list[str]]] = {}  # tier: host: UUIDs
        self._wanted: dict[str, dict[str, float]] = defaultdict(dict)  # host: UUID: watts
        self._why = "as before"
        self._drawn: dict[str, list[Drawn]] = {}  # by host, as it was last told
        self._measured_at_s: float | None = None
        self._num_tokens: int | None = None
        self._seen: Observation | None = None
        self._num_over = 0
        self.problem: str | None = "nothing was measured yet"
        self.moves: deque[dict[str, Any]] = deque(maxlen=KEPT_MOVES)
        self._num_moves: Counter[tuple[str, str]] = Counter()
        self._file = _opened(tier_map.energy.control_log)
        self._log = None if self._file is None else ControlLog(self._write, self._settings)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to control."""
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def stop(self) -> None:
        """Stop, and give the caps back at once."""
        task, self._task = self._task, None
        await ended(task)
        if task is not None and self._seen is not None:
            await self._give_back(self._seen)
        for agent in self._agents:
            agent.close()
        if self._file is not None:
            self._file.close()

    def told(self) -> dict[str, Any]:
        """For `GET /admin/power`."""
        seen, law = self._seen, self._controller
        return {
            "power_budget_w": self._settings.power_budget_w,
            "energy_budget_j_per_output_token": (
                None if self._settings.energy is None else self._settings.energy.j_per_output_token
            ),
            "watts": None if seen is None or self.problem else seen.watts,
            "j_per_output_token": law.j_per_output_token,
            "max_running_turns": law.max_running,
            "is_infeasible": law.is_infeasible,
            "problem": self.problem,
            "tiers": [
                {"tier": each.tier, "watts": each.watts, "cap_w": each.cap_w,
                 "base_w": each.base_w, "is_held": each.is_held}
                for each in (() if seen is None else seen.tiers)
            ],
            "moves": list(self.moves),
        }  # fmt: skip

    def reading(self) -> PowerReading:
        """For Prometheus."""
        seen = self._seen
        return PowerReading(
            budget_w=self._settings.power_budget_w,
            watts=None if seen is None or self.problem is not None else seen.watts,
            caps_w={} if seen is None else {t.tier: t.cap_w for t in seen.tiers if t.is_held},
            max_running=self._controller.max_running,
            is_infeasible=self._controller.is_infeasible,
            is_blind=self.problem is not None,
            num_over=self._num_over,
            num_moves=dict(self._num_moves),
        )

    # inside

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + PERIOD_S, loop.time())
            await asyncio.sleep(due_s - loop.time())
            try:
                await self._step(loop.time)
            except Exception:
                logger.exception("the power controller failed; it tries again")
                self.problem = "the power controller failed; see the router's log"

    async def _step(self, clock: Callable[[], float]) -> None:
        answers = await ask_all(self._agents, self._wanted, self._why)
        self._seen = seen = self._observe(answers, clock())
        budget_w = self._settings.power_budget_w
        self._num_over += budget_w is not None and self.problem is None and seen.watts > budget_w
        moves = self._controller.handle(seen)
        if self._log is not None:
            self._log.add(seen, moves)
        if moves:
            await self._carry_out(moves)

    def _observe(
        self,
        answers: Sequence[tuple[list[Drawn] | None, dict[str, HeldCap] | None]],
        now_s: float,
    ) -> Observation:
        drawn: list[tuple[AgentLink, Drawn]] = []
        held: dict[str, HeldCap] = {}
        for agent, (energy, caps) in zip(self._agents, answers, strict=True):
            if energy is not None:
                self._drawn[agent.host] = [each for each in energy if each.workers]
            drawn += [(agent, each) for each in self._drawn.get(agent.host, ())]
            held |= caps or {}
            if caps is not None:  # GPUs that nobody holds any more are not asked for again
                wanted = self._wanted[agent.host]
                self._wanted[agent.host] = {gpu: w for gpu, w in wanted.items() if gpu in caps}
        self._note_problem([energy for energy, _ in answers], [each for _, each in drawn])
        by_tier: dict[str, list[tuple[AgentLink, Drawn]]] = defaultdict(list)
        for agent, each in drawn:
            if each.is_gpu:
                by_tier[self._tier_for(each.workers).name].append((agent, each))
        metrics = self._metrics()
        recent = metrics.recent
        before, self._num_tokens = self._num_tokens, metrics.output_tokens
        if self.problem is None:
            self._measured_at_s = now_s - max(each.age_s for _, each in drawn)
        elif not all(each.is_measured for _, each in drawn):
            self._measured_at_s = None
        return Observation(
            at_s=now_s,
            measured_at_s=self._measured_at_s,
            tiers=tuple(self._reading(name, gpus, held) for name, gpus in by_tier.items()),
            other_w=sum(each.watts for _, each in drawn if not each.is_gpu),
            joules=0.0 if self.problem else sum(each.joules for _, each in drawn),
            output_tokens=0 if before is None else metrics.output_tokens - before,
            ttfet=None if recent is None else self._latency(recent.ttfet, now_s),
            tbt=None if recent is None else self._latency(recent.tbt, now_s),
            num_running=self._running.num_open_turns - self._running.num_queued,
        )

    def _latency(self, samples: Iterable[Sample], now_s: float) -> Latency | None:
        window_s = self._settings.latency_window_s
        moved_at_s = self._controller.moved_at_s
        return recent_latency(samples, now_s, moved_at_s=moved_at_s, window_s=window_s)

    def _note_problem(self, energies: Iterable[list[Drawn] | None], drawn: list[Drawn]) -> None:
        before = self.problem
        if any(energy is None for energy in energies):
            said = [agent.problem for agent in self._agents if agent.problem is not None]
            self.problem = said[0] if said else "an agent does not tell its energy"
        elif any(not each.is_measured for each in drawn):
            self.problem = "power is modelled here; a budget is kept by what is measured alone"
        elif not drawn:
            self.problem = "no device of the deployment is measured"
        else:
            self.problem = None
        if self.problem is not None and self.problem != before:
            logger.warning("power is not controlled: %s", self.problem)

    def _tier_for(self, workers: Sequence[str]) -> Tier:
        """The tier that stands for a device: of those that share it the one dearest to the SLO."""
        tiers = [self._tier_of[WorkerId(worker)] for worker in workers]
        return max(tiers, key=lambda tier: SLO_COST[tier.role])

    def _reading(
        self, name: str, gpus: Sequence[tuple[AgentLink, Drawn]], held: dict[str, HeldCap]
    ) -> TierReading:
        hosts: dict[str, list[str]] = defaultdict(list)
        for agent, each in gpus:
            hosts[agent.host].append(each.device_id)
        self._gpus[name] = hosts
        mine = [held[each.device_id] for _, each in gpus if each.device_id in held]
        is_held = len(mine) == len(gpus) and not any(each.is_foreign for each in mine)
        role = self._tier_for(gpus[0][1].workers).role
        return TierReading(
            tier=name,
            role=role,
            num_gpus=len(gpus),
            watts=sum(each.watts for _, each in gpus),
            most_w=max(each.watts for _, each in gpus),
            cap_w=min((each.cap_w for each in mine), default=0.0),
            base_w=min((each.base_w for each in mine), default=0.0),
            least_w=max((each.least_w for each in mine), default=0.0),
            is_held=is_held,
        )

    async def _carry_out(self, moves: Sequence[Move]) -> None:
        for move in moves:
            shown = move_as_json(move)
            self.moves.append({"at_s": self._seen and self._seen.at_s, **shown})
            self._num_moves[(str(shown["kind"]), move.reason.value)] += 1
            logger.info("power: %s", shown, extra=told("power_move", **shown))
            if isinstance(move, CapMove):
                self._want(move.tier, move.after_w)
            else:
                self._tell(RunningBounded(num_turns=move.after))
        if any(isinstance(move, CapMove) for move in moves):
            self._why = moves[0].why
            await asyncio.gather(
                *(agent.caps(self._wanted[agent.host], self._why) for agent in self._agents)
            )

    def _want(self, tier: str, watts: float) -> None:
        for host, uuids in self._gpus[tier].items():
            self._wanted[host].update(dict.fromkeys(uuids, watts))

    async def _give_back(self, seen: Observation) -> None:
        for reading in seen.levers:
            self._want(reading.tier, reading.base_w)
        await asyncio.gather(
            *(agent.caps(self._wanted[agent.host], "the router ends") for agent in self._agents)
        )

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + "\n")


def _opened(path: str | None) -> TextIO | None:
    if path is None:
        return None
    try:
        return Path(path).open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ConfigError(
            f"energy.control_log: {path}: cannot be written: {error.strerror}"
        ) from error
