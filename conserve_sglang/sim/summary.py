"""Records of a run in a few figures."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from conserve_sglang.core.stats import geometric_mean, percentile
from conserve_sglang.core.tier import Slo
from conserve_sglang.policy import PlacementReason
from conserve_sglang.sim.alone import Alone, alone
from conserve_sglang.sim.driver import Simulation
from conserve_sglang.sim.perf_model import PerfModel
from conserve_sglang.sim.power import ModelledEnergy, Served, modelled_energy
from conserve_sglang.sim.records import ConversationRecord, Outcome

SLO_FACTOR = 5
"""The paper's SLO: so many times the stand-alone mean, for each of the three latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One latency: seconds, and divided by that of the same conversation run alone.

    Of all `count` conversations that arrived and would have it: one that was not answered never
    ends (infinite), so that nobody looks fast who serves few. `slo_attainment`: the share of them
    that keeps `slo_s`; both None where there is no target.
    """

    count: int
    p50_s: float
    p95_s: float
    p50_normalised: float
    p95_normalised: float
    geomean_normalised: float
    slo_s: float | None
    slo_attainment: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run's figures; latencies are None where no conversation has one. `modelled_energy` is None
    where that was not asked for, or a worker's profile has no watts."""

    num_conversations: int
    outcomes: dict[str, int]
    unanswered_because: dict[str, int]
    num_turns: int
    turns_by_reason: dict[str, int]
    output_tokens: int
    longest_prompt_tokens: int
    duration_s: float
    output_tokens_per_s: float
    turns_per_s: float
    ttfet: Figures | None
    last_turn_tbt: Figures | None
    e2e: Figures | None
    modelled_energy: ModelledEnergy | None = None


@dataclass(slots=True)
class Latency:
    """One latency of many conversations: seconds, and seconds when run alone."""

    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    alone: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, seconds: float | None, alone: float | None) -> None:
        """Note one conversation, unless it has no such latency; infinite: it was not answered."""
        if seconds is not None and alone is not None:
            self.seconds.append(seconds)
            self.alone.append(alone)

    @property
    def papers_slo_s(self) -> float | None:
        """The paper's target: `SLO_FACTOR` times the mean when run alone."""
        return SLO_FACTOR * sum(self.alone) / len(self.alone) if self.alone else None

    def figures(self, slo_s: float | None) -> Figures | None:
        """What to report, judged by a target if there is one."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        ratios = sorted(own / alone for own, alone in zip(self.seconds, self.alone, strict=True))
        met = None if slo_s is None else sum(own <= slo_s for own in ordered) / len(ordered)
        return Figures(
            count=len(ordered),
            p50_s=percentile(ordered, 50),
            p95_s=percentile(ordered, 95),
            p50_normalised=percentile(ratios, 50),
            p95_normalised=percentile(ratios, 95),
            geomean_normalised=geometric_mean(ratios),
            slo_s=slo_s,
            slo_attainment=met,
        )


class Tally:
    """A sink that keeps only numbers: eight bytes a latency, so that a long run stays small.

    `perf`: what conversations run alone are computed with. `slo`: the targets to judge by; without
    it they are the paper's, five times the mean of these.
    """

    def __init__(self, perf: PerfModel, slo: Slo | None = None) -> None:
        self._perf, self._slo = perf, slo
        self._num_kept = 0
        self._ttfet, self._tbt, self._e2e = Latency(), Latency(), Latency()
        self._outcomes: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._reasons: Counter[PlacementReason] = Counter()
        self._output_tokens, self._counted_tokens = 0, 0
        self._longest_prompt = 0
        self._began_at_s, self._ended_at_s = float("inf"), 0.0

    def __call__(self, record: ConversationRecord) -> None:
        """Take in a conversation that is over."""
        self._outcomes[record.outcome.value] += 1
        self._began_at_s = min(self._began_at_s, record.plan.arrived_at_s)
        for turn in record.turns:
            self._reasons[turn.reason] += 1
            self._output_tokens += turn.output_tokens
            self._counted_tokens += turn.input_tokens + turn.output_tokens
            self._longest_prompt = max(self._longest_prompt, turn.input_tokens)
        if record.turns:
            self._ended_at_s = max(self._ended_at_s, record.turns[-1].last_token_at_s)
        if record.outcome is not Outcome.ANSWERED:
            self._unanswered[record.why] += 1
        self._time(record, alone(record.plan, self._perf))

    def _time(self, record: ConversationRecord, by_itself: Alone) -> None:
        is_answered = record.outcome is Outcome.ANSWERED
        ttfet_s = record.ttfet_s if is_answered else inf
        tbt_s = record.last_turn_tbt_s if is_answered else inf
        e2e_s = record.e2e_s if is_answered else inf
        self._ttfet.add(ttfet_s, by_itself.ttfet_s)
        self._tbt.add(tbt_s, by_itself.last_turn_tbt_s)
        self._e2e.add(e2e_s, by_itself.e2e_s)
        if self._slo is not None and is_answered:
            pairs = (
                (self._slo.ttfet_s, ttfet_s),
                (self._slo.last_turn_tbt_s, tbt_s),
                (self._slo.e2e_s, e2e_s),
            )
            self._num_kept += all(most is None or own is None or own <= most for most, own in pairs)

    @property
    def attained(self) -> float | None:
        """The share of all conversations that keep every target given; None without any."""
        num = sum(self._outcomes.values())
        return self._num_kept / num if self._slo is not None and num else None

    @property
    def window_s(self) -> float:
        """The serving window so far: first arrival to last token."""
        return max(0.0, self._ended_at_s - self._began_at_s) if self._outcomes else 0.0

    def summary(self, simulation: Simulation | None = None) -> Summary:
        """The figures so far, with the energy of the simulation they are of, if that is given."""
        num = sum(self._outcomes.values())
        targets = self._targets()
        num_turns = sum(self._reasons.values())
        duration_s = self.window_s
        return Summary(
            num_conversations=num,
            outcomes=_by_name(self._outcomes),
            unanswered_because=_by_name(self._unanswered),
            num_turns=num_turns,
            turns_by_reason=_by_name({each.value: n for each, n in self._reasons.items()}),
            output_tokens=self._output_tokens,
            longest_prompt_tokens=self._longest_prompt,
            duration_s=duration_s,
            output_tokens_per_s=_per(self._output_tokens, duration_s),
            turns_per_s=_per(num_turns, duration_s),
            ttfet=self._ttfet.figures(targets.ttfet_s),
            last_turn_tbt=self._tbt.figures(targets.last_turn_tbt_s),
            e2e=self._e2e.figures(targets.e2e_s),
            modelled_energy=self._energy(simulation) if simulation is not None else None,
        )

    def _targets(self) -> Slo:
        if self._slo is not None:
            return self._slo
        return Slo(
            ttfet_s=self._ttfet.papers_slo_s,
            last_turn_tbt_s=self._tbt.papers_slo_s,
            e2e_s=self._e2e.papers_slo_s,
        )

    def _energy(self, simulation: Simulation) -> ModelledEnergy | None:
        served = Served(
            window_s=self.window_s,
            num_answered=self._outcomes[Outcome.ANSWERED.value],
            num_turns=sum(self._reasons.values()),
            output_tokens=self._output_tokens,
            counted_tokens=self._counted_tokens,
        )
        return modelled_energy(simulation.energy(served.window_s), served)


def _by_name(counter: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counter.items()) if count}


def _per(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0
