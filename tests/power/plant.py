"""A deployment for the control law: tiers of GPUs that draw what is demanded, up to their caps."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from conserve_sglang.core.worker import Role
from conserve_sglang.power.control import PowerController
from conserve_sglang.power.observation import (
    AdmissionMove,
    CapMove,
    Latency,
    Move,
    Observation,
    TierReading,
)

Demand = Callable[[float], float]
"""Watts that each GPU of a tier would draw at a time, without a cap."""


@dataclass
class PlantTier:
    name: str
    role: Role
    num_gpus: int
    demand: Demand
    base_w: float = 300.0
    least_w: float = 100.0
    is_held: bool = True
    cap_w: float = field(init=False)

    def __post_init__(self) -> None:
        self.cap_w = self.base_w

    def watts(self, at_s: float) -> float:
        return self.num_gpus * min(self.demand(at_s), self.cap_w)


@dataclass
class Plant:
    """`tbt` and `ttfet` make latencies of the tiers' caps; joules come in `slices` a period."""

    tiers: Sequence[PlantTier]
    tbt: Callable[["Plant", float], float] | None = None
    ttfet: Callable[["Plant", float], float] | None = None
    tokens: Callable[["Plant", float], int] | None = None
    num_running: int = 100
    max_running: int | None = None
    slices: int = 10

    def __getitem__(self, name: str) -> PlantTier:
        return next(tier for tier in self.tiers if tier.name == name)

    @property
    def running(self) -> int:
        most = self.max_running
        return self.num_running if most is None else min(most, self.num_running)

    def watts(self, at_s: float) -> float:
        return sum(tier.watts(at_s) for tier in self.tiers)

    def observe(self, at_s: float, period_s: float = 1.0) -> Observation:
        """The period that ends at `at_s`, with its mean powers."""
        times = [at_s - period_s * (n + 0.5) / self.slices for n in range(self.slices)]
        readings = tuple(
            TierReading(
                tier=tier.name, role=tier.role, num_gpus=tier.num_gpus, cap_w=tier.cap_w,
                base_w=tier.base_w, least_w=tier.least_w, is_held=tier.is_held,
                watts=sum(tier.watts(time) for time in times) / self.slices,
            )
            for tier in self.tiers
        )  # fmt: skip
        return Observation(
            at_s=at_s,
            measured_at_s=at_s,
            tiers=readings,
            joules=period_s * sum(reading.watts for reading in readings),
            output_tokens=0 if self.tokens is None else self.tokens(self, at_s),
            tbt=self.latency(self.tbt, at_s, period_s),
            ttfet=self.latency(self.ttfet, at_s, period_s),
            num_running=self.running,
        )

    def latency(
        self, of: Callable[["Plant", float], float] | None, at_s: float, period_s: float
    ) -> Latency | None:
        """That of this very period: nothing lags behind."""
        if of is None:
            return None
        return Latency(p95_s=of(self, at_s), num_samples=50, since_s=at_s - period_s)

    def obey(self, moves: Sequence[Move]) -> None:
        for move in moves:
            if isinstance(move, CapMove):
                tier = self[move.tier]
                assert tier.least_w <= move.after_w <= tier.base_w, move
                assert tier.is_held, move
                assert move.before_w == tier.cap_w, move
                tier.cap_w = move.after_w
            elif isinstance(move, AdmissionMove):
                assert move.before == self.max_running
                self.max_running = move.after


@dataclass
class Run:
    """What became of a plant under control: watts of each period, and every move."""

    watts: list[float] = field(default_factory=list)
    moves: list[tuple[float, Move]] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)

    def over(self, budget_w: float) -> list[int]:
        """The periods whose mean power was above."""
        return [n for n, watts in enumerate(self.watts) if watts > budget_w + 1e-6]

    def turns(self, tier: str) -> int:
        """How often a tier's cap changed its direction."""
        ways = [
            move.after_w > move.before_w
            for _, move in self.moves
            if isinstance(move, CapMove) and move.tier == tier
        ]
        return sum(a != b for a, b in itertools.pairwise(ways))


def play(plant: Plant, controller: PowerController, seconds: int) -> Run:
    """Run the loop once a second from second 0."""
    run = Run()
    for second in range(1, seconds + 1):
        seen = plant.observe(float(second))
        moves = controller.handle(seen)
        plant.obey(moves)
        run.watts.append(seen.watts)
        run.seen.append(seen)
        run.moves += [(seen.at_s, move) for move in moves]
    return run
