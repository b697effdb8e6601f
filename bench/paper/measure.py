"""One run's figures: latencies by both accountings, SLOs, where turns ran.

Tool gaps, which no policy can change, are left out of every latency and of what it is divided by.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from conserve_sglang.core.stats import geometric_mean, percentile
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    ConversationRecord,
    Deployment,
    Outcome,
    Simulation,
    alone,
)
from conserve_sglang.sim.summary import SLO_FACTOR
from conserve_sglang.workload import ConversationPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A conversation's latencies when run alone, without its tool gaps."""

    ttfet_s: float
    e2e_s: float
    tbt_s: float | None


def alone_of(plans: Iterable[ConversationPlan]) -> dict[str, Alone]:
    """By conversation: on one A40 at 300 W, batch 1."""
    found = {}
    for plan in plans:
        by_itself = alone(plan, A40_QWEN3_0_6B)
        gaps_s = sum(turn.gap_s for turn in plan.turns[1:])
        found[str(plan.conversation_id)] = Alone(
            ttfet_s=by_itself.ttfet_s - gaps_s,
            e2e_s=by_itself.e2e_s - gaps_s,
            tbt_s=by_itself.last_turn_tbt_s,
        )
    return found


def slo_of(by_itself: Mapping[str, Alone]) -> dict[str, float]:
    """The paper's targets: five times the mean when run alone."""
    every = by_itself.values()
    tbts = [each.tbt_s for each in every if each.tbt_s is not None]
    return {
        "ttfet": SLO_FACTOR * sum(each.ttfet_s for each in every) / len(every),
        "e2e": SLO_FACTOR * sum(each.e2e_s for each in every) / len(every),
        "tbt": SLO_FACTOR * sum(tbts) / len(tbts),
    }


def play(
    deployment: Deployment, plans: Iterable[ConversationPlan], by_itself: Mapping[str, Alone]
) -> dict[str, Any]:
    """Simulate; the run's figures."""
    records: list[ConversationRecord] = []
    simulation = Simulation(deployment, records.append)
    ended_at_s = simulation.run(plans)
    figures = figures_of(records, by_itself)
    workers = simulation.workers.values()
    figures["busy"] = [round(worker.busy_s / ended_at_s, 3) for worker in workers]
    figures["evicted"] = sum(worker.pool.num_evicted for worker in workers)
    figures["retracted"] = sum(worker.num_retracted for worker in workers)
    figures["kv_transfers"] = simulation.links.num_transfers
    figures["duration_s"] = ended_at_s
    figures["energy"] = _energy(simulation, records)
    return figures


def _energy(simulation: Simulation, records: Sequence[ConversationRecord]) -> dict[str, float]:
    """Modelled joules of all GPUs from the first arrival to the last token, idle included."""
    turns = [turn for record in records for turn in record.turns]
    began_at_s = min(record.plan.arrived_at_s for record in records)
    window_s = max(turn.last_token_at_s for turn in turns) - began_at_s
    workers = simulation.energy(window_s)
    if not all(worker.has_power for worker in workers):
        raise ValueError("a profile has no watts")
    total_j = sum(worker.total_j for worker in workers)
    counted = sum(turn.input_tokens + turn.output_tokens for turn in turns)
    return {
        "tokens_per_j": counted / total_j,
        "output_tokens_per_j": sum(turn.output_tokens for turn in turns) / total_j,
        "idle_share": sum(worker.idle_j for worker in workers) / total_j,
        "mean_w": total_j / window_s,
    }


def figures_of(
    records: Sequence[ConversationRecord], by_itself: Mapping[str, Alone]
) -> dict[str, Any]:
    """Latencies divided by those when run alone: of both accountings, named."""
    slo = slo_of(by_itself)
    rows = [_row(record, by_itself[str(record.plan.conversation_id)]) for record in records]
    reasons = Counter(turn.reason.value for record in records for turn in record.turns)
    ttfts = sorted(turn.ttft_s for record in records for turn in record.turns)
    return {
        "one_clock": _accounting([row[0] for row in rows], slo),
        "papers": _accounting([row[1] for row in rows], slo),
        "unanswered": sum(record.outcome is not Outcome.ANSWERED for record in records),
        "turn_ttft_p50_s": percentile(ttfts, 50),
        "turn_ttft_p95_s": percentile(ttfts, 95),
        "reasons": dict(sorted(reasons.items())),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A conversation's latencies in one accounting; infinite when it was not answered."""

    ttfet_s: float
    e2e_s: float
    tbt_s: float | None
    alone: Alone


def _row(record: ConversationRecord, by_itself: Alone) -> tuple[Times, Times]:
    """By one clock, from turn 1's arrival; and by the paper's, from the start of its prefill."""
    if record.outcome is not Outcome.ANSWERED:
        lost = Times(ttfet_s=inf, e2e_s=inf, tbt_s=inf, alone=by_itself)
        return lost, lost
    first = record.turns[0]
    gaps_s = sum(turn.gap_s for turn in record.plan.turns[1:])
    queued_s = first.prefill_at_s - first.arrived_at_s
    times = [
        Times(
            ttfet_s=record.ttfet_s - gaps_s - left_out_s,
            e2e_s=record.e2e_s - gaps_s - left_out_s,
            tbt_s=record.last_turn_tbt_s,
            alone=by_itself,
        )
        for left_out_s in (0.0, queued_s)
    ]
    return times[0], times[1]


def _accounting(times: Sequence[Times], slo: Mapping[str, float]) -> dict[str, float]:
    ttfet = sorted(each.ttfet_s / each.alone.ttfet_s for each in times)
    e2e = sorted(each.e2e_s / each.alone.e2e_s for each in times)
    tbt = sorted(
        each.tbt_s / each.alone.tbt_s
        for each in times
        if each.tbt_s is not None and each.alone.tbt_s is not None
    )
    figures = {}
    for name, ratios in (("ttfet", ttfet), ("tbt", tbt), ("e2e", e2e)):
        figures[f"{name}_p50"] = percentile(ratios, 50)
        figures[f"{name}_p95"] = percentile(ratios, 95)
        figures[f"{name}_geomean"] = geometric_mean(ratios) if ratios[-1] < inf else inf
    met = [
        (
            each.ttfet_s <= slo["ttfet"],
            each.tbt_s is None or each.tbt_s <= slo["tbt"],
            each.e2e_s <= slo["e2e"],
        )
        for each in times
    ]
    for index, name in enumerate(("ttfet", "tbt", "e2e")):
        figures[f"{name}_slo"] = sum(each[index] for each in met) / len(met)
    figures["slo"] = sum(all(each) for each in met) / len(met)
    return figures


def predictor_error(plans: Iterable[ConversationPlan]) -> dict[str, float]:
    """How far off `ampd-like`'s predictor of an answer's length is on later turns, relatively."""
    errors = []
    for plan in plans:
        seen: list[int] = []
        for turn in plan.turns:
            if seen:
                errors.append(abs(sum(seen) / len(seen) - turn.output_tokens) / turn.output_tokens)
            seen.append(turn.output_tokens)
    errors.sort()
    return {"p50": percentile(errors, 50), "p95": percentile(errors, 95), "turns": len(errors)}
