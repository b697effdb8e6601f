"""What the simulator says of a fleet under a policy at a load."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.stats import percentile
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.power_log import PowerLog
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.request import Targets
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import (
    Beyond,
    ConversationRecord,
    Deployment,
    Outcome,
    Simulation,
    SimWorkerSpec,
    beyond_points,
)

LARGEST_FLEET = 64
"""A larger fleet is simulated at a smaller scale: fewer workers, and the load they have."""
FEWEST, MOST_CONVERSATIONS = 300, 1600
MOST_TURNS = 12_000
"""Of a short run, which finds out which fleets are worth judging."""
PER_WORKER = 40
NUM_BINS = 40
"""Of the power over the time in which conversations arrive."""
WARM_UP = 5
"""What comes in the first fifth of a run, while the fleet fills up, is not counted."""
MOST_GROWTH = 0.02
"""Of the turns under way for each conversation that comes, with somewhat more load (`judging`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What figures were taken from: a run for each seed, of `num_conversations` that come within
    `arriving_s` (the shortest run's), the first fifth not counted. `is_judged`: long runs, with
    three seeds and a test of what more it carries (`judging`); a short one else. `is_filled`: that
    fifth was no shorter than the E2E, at the SLO's percentile."""

    seeds: tuple[int, ...]
    num_conversations: int
    arriving_s: float
    is_judged: bool = False
    is_filled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Figures of one run, or of several the worst. Latencies at the targets' level, of all
    conversations that are counted: one that was not answered never ends (infinite). Power and
    tokens per joule are those of the load going on: of the time in which conversations arrive,
    without the run's beginning and end. `scale`: the share of the fleet that was simulated;
    `mean_w` and `load_per_s` are of the whole fleet again. `beyond`: what went beyond the points of
    profiles, and is extrapolated. `growth`: of the turns under way at somewhat more load, for each
    conversation that comes (`judging`); None where that was not tried.
    """

    load_per_s: float
    ttfet_s: float
    tbt_s: float
    e2e_s: float
    ttfet_p50_s: float
    tbt_p50_s: float
    e2e_p50_s: float
    attained: float
    answered: float
    num_conversations: int
    runs: Runs
    scale: float
    mean_w: float
    tokens_per_joule: float
    power: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    beyond: tuple[Beyond, ...] = ()
    growth: float | None = None

    @property
    def is_steady(self) -> bool:
        """Whether it carries somewhat more load too, as far as that was tried."""
        return self.growth is None or self.growth <= MOST_GROWTH

    def keeps(self, targets: Targets) -> bool:
        """Whether the targets are met, in the long run."""
        pairs = (
            (targets.ttfet_s, self.ttfet_s),
            (targets.tbt_s, self.tbt_s),
            (targets.e2e_s, self.e2e_s),
        )
        is_kept = all(most is None or value <= most for most, value in pairs)
        return is_kept and self.is_steady and self.answered >= targets.level


def quantile_of(values: Sequence[float], num_all: int, level: float) -> float:
    """The quantile of `num_all` values, those not given being infinite."""
    ordered = [*sorted(values), *[math.inf] * (num_all - len(values))]
    return percentile(ordered, level * 100) if ordered else math.nan


def sizes(counts: Mapping[Config, int]) -> tuple[dict[Config, int], float]:
    """The fleet to simulate, and the share of the load it gets: that of the role which was scaled
    down most."""
    total = sum(counts.values())
    if total <= LARGEST_FLEET:
        return dict(counts), 1.0
    share = LARGEST_FLEET / total
    small = {config: max(1, math.floor(count * share)) for config, count in counts.items()}
    of_role: dict[Role, tuple[int, int]] = {}
    for config, count in counts.items():
        few, many = of_role.get(config.role, (0, 0))
        of_role[config.role] = few + small[config], many + count
    return small, min(few / many for few, many in of_role.values())


def num_to_play(load: Load, num_workers: int) -> int:
    """How many conversations a run has: enough for each worker, and not too many turns."""
    wanted = min(MOST_CONVERSATIONS, max(FEWEST, PER_WORKER * num_workers))
    return max(FEWEST // 2, min(wanted, int(MOST_TURNS / load.turns_per_conversation)))


def simulated_workers(
    counts: Mapping[Config, int], hardware: Mapping[Config, Hardware]
) -> tuple[SimWorkerSpec, ...]:
    """Each worker, by its configuration's times and KV room."""
    found: list[SimWorkerSpec] = []
    for config, count in counts.items():
        own = hardware[config]
        for _ in range(count):
            number = len(found)
            spec = WorkerSpec(
                worker_id=WorkerId(f"{config.tier}-{config.role.value}-{number}"),
                role=config.role,
                tier=TierName(config.tier),
                kv_capacity_tokens=own.kv_capacity_tokens,
            )
            found.append(
                SimWorkerSpec(
                    spec=spec,
                    perf=own.perf,
                    max_running=own.max_running,
                    chunk_tokens=own.chunk_tokens,
                )
            )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Workers by configuration, the policy that places turns on them, and what they are."""

    counts: Mapping[Config, int]
    policy: PolicyChoice
    hardware: Mapping[Config, Hardware]


def simulate(
    fleet: Fleet,
    load: Load,
    rate_per_s: float,
    targets: Targets,
    seed: int,
    num: int | None = None,
) -> Score:
    """Play a sample of the load at `rate_per_s` on a fleet: `num` conversations, or as many as a
    short run has."""
    num = num or num_to_play(load, sum(fleet.counts.values()))
    played = play(fleet, load, rate_per_s, num, seed)
    counted = played.counted
    answered = [record for record in counted if record.outcome is Outcome.ANSWERED]
    missing = len(counted) - len(answered)
    ttfets = [record.ttfet_s for record in answered]
    tbts = [tbt for record in answered if (tbt := record.last_turn_tbt_s) is not None]
    e2es = [record.e2e_s for record in answered]
    scale, mean_w = played.scale, steady_w(played.watts) / played.scale
    answered_share = len(answered) / len(counted)
    tokens_per_s = rate_per_s * load.tokens_per_conversation * answered_share
    return Score(
        load_per_s=rate_per_s,
        ttfet_s=quantile_of(ttfets, len(counted), targets.level),
        tbt_s=quantile_of(tbts, len(tbts) + missing, targets.level),
        e2e_s=quantile_of(e2es, len(counted), targets.level),
        ttfet_p50_s=quantile_of(ttfets, len(counted), 0.5),
        tbt_p50_s=quantile_of(tbts, len(tbts) + missing, 0.5),
        e2e_p50_s=quantile_of(e2es, len(counted), 0.5),
        attained=sum(_keeps(record, targets) for record in answered) / len(counted),
        answered=answered_share,
        num_conversations=len(played.records),
        runs=Runs(
            seeds=(seed,), num_conversations=len(played.records), arriving_s=played.arriving_s
        ),
        scale=scale,
        mean_w=mean_w,
        tokens_per_joule=tokens_per_s / mean_w if mean_w else 0.0,
        power={
            tier: [(at, watts / scale) for at, watts in points]
            for tier, points in played.watts.items()
        },
        beyond=played.beyond,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run: what became of its conversations, which came within `arriving_s`."""

    records: Sequence[ConversationRecord]
    arriving_s: float
    scale: float
    watts: Mapping[str, Sequence[tuple[float, float]]]
    beyond: tuple[Beyond, ...]

    @property
    def counted(self) -> list[ConversationRecord]:
        """Those that came after the warm-up."""
        from_s = self.arriving_s / WARM_UP
        return [one for one in self.records if one.plan.arrived_at_s >= from_s] or [*self.records]


def play(
    fleet: Fleet, load: Load, rate_per_s: float, num: int, seed: int, *, is_even: bool = False
) -> Played:
    """Simulate `num` conversations on a fleet, or on a part of a large one."""
    counts, scale = sizes(fleet.counts)
    deployment = Deployment(
        workers=simulated_workers(counts, fleet.hardware), policy=make_policy(fleet.policy)
    )
    records: list[ConversationRecord] = []
    simulation = Simulation(deployment, records.append)
    plans = list(load.sample(num, rate_per_s * scale, seed, is_even=is_even))
    arriving_s = plans[-1].arrived_at_s - plans[0].arrived_at_s
    log = PowerLog(simulation, arriving_s / NUM_BINS)
    simulation.run(plans)
    return Played(
        records=records,
        arriving_s=arriving_s,
        scale=scale,
        watts=log.watts,
        beyond=beyond_points(simulation.workers.values()),
    )


def steady_w(power: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    """Mean watts of all tiers, from when the fleet has filled up until nobody comes any more."""
    total = 0.0
    for points in power.values():
        bins = [watts for _, watts in points[:NUM_BINS]]
        kept = bins[len(bins) // WARM_UP :] or bins
        total += sum(kept) / len(kept)
    return total


def _keeps(record: ConversationRecord, targets: Targets) -> bool:
    tbt_s = record.last_turn_tbt_s
    is_quick = targets.ttfet_s is None or record.ttfet_s <= targets.ttfet_s
    is_quick = is_quick and (targets.e2e_s is None or record.e2e_s <= targets.e2e_s)
    return is_quick and (targets.tbt_s is None or tbt_s is None or tbt_s <= targets.tbt_s)
