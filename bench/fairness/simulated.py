"""The scenario in virtual time, where decode steps grow with their batch."""

from collections.abc import Mapping
from typing import Any

from bench.fairness.scenario import BURSTY, STEADY, Played, Scenario, summary
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import (
    A40_QWEN3_0_6B,
    ConversationRecord,
    Deployment,
    Simulation,
    SimWorkerSpec,
)
from conserve_sglang.workload import ConversationPlan, TurnPlan

PATIENT = {"max_phase_one_turns": 10**6, "queue_timeout_s": 1e9}
UNBOUNDED = 10**9
BOUNDS = (1, 4096, 8192, 16_384, 32_768, 65_536)


def modes(bound: int) -> Mapping[str, tuple[bool, dict[str, Any]]]:
    """Whether A's bursts are there, and the dispatcher's settings."""
    plain = {"is_fair": False, "max_prefill_backlog_tokens": UNBOUNDED}
    return {
        "alone": (False, {"max_prefill_backlog_tokens": bound}),
        "burst, FIFO": (True, plain),
        "burst, fair": (True, {"max_prefill_backlog_tokens": bound}),
    }


def simulate(scenario: Scenario, bound: int) -> dict[str, dict[str, Any]]:
    """B's and A's latencies in each mode."""
    rows: dict[str, dict[str, Any]] = {}
    for mode, (has_burst, settings) in modes(bound).items():
        records = _play(scenario, scenario.plans(has_burst=has_burst), settings)
        played = [
            Played(
                tenant=record.plan.tenant,
                ttfet_s=record.ttfet_s,
                first_ttft_s=record.turns[0].ttft_s,
            )
            for record in records
        ]
        tbts = [r.last_turn_tbt_s for r in records if r.plan.tenant == STEADY]
        known = sorted(tbt for tbt in tbts if tbt is not None)
        rows[mode] = {
            "b": summary(played, STEADY) | {"tbt_ms_p50": round(1e3 * known[len(known) // 2], 1)},
            "a": summary(played, BURSTY),
        }
    return rows


def throughput_by_bound(scenario: Scenario) -> list[dict[str, float]]:
    """First turns a second while more wait than can be served, by bound, for long and short
    prompts; and how long a turn of the other tenant waits that comes in the middle of it."""
    rows = []
    for bound in (*BOUNDS, UNBOUNDED):
        row: dict[str, float] = {"max_prefill_backlog_tokens": bound}
        for name, tokens in (("long", 16_000), ("short", 500)):
            flood = [_one_turn(f"a-{n}", BURSTY, tokens, 0.0) for n in range(256)]
            late = [_one_turn(f"b-{n}", STEADY, tokens, 1.0 + n / 2) for n in range(8)]
            plans = sorted(flood + late, key=lambda plan: plan.arrived_at_s)
            records = _play(scenario, plans, {"max_prefill_backlog_tokens": bound})
            last = max(record.turns[0].first_token_at_s for record in records)
            waits = [r.turns[0].ttft_s for r in records if r.plan.tenant == STEADY]
            row[f"{name}_per_s"] = round(len(records) / last, 2)
            row[f"{name}_b_ttft_s"] = round(sum(waits) / len(waits), 3)
        rows.append(row)
    return rows


def _one_turn(name: str, tenant: Any, tokens: int, at_s: float) -> ConversationPlan:
    turn = TurnPlan(input_tokens=tokens, output_tokens=16)
    return ConversationPlan(
        conversation_id=name,  # type: ignore[arg-type]
        turns=(turn,),
        arrived_at_s=at_s,
        tenant=tenant,
    )


def _play(
    scenario: Scenario, plans: list[ConversationPlan], settings: Mapping[str, Any]
) -> list[ConversationRecord]:
    records: list[ConversationRecord] = []
    deployment = Deployment(
        workers=tuple(_workers(scenario)),
        policy=make_policy(PolicyChoice(name="conserve", params={})),
        settings=DispatchSettings(**{**PATIENT, **settings}),
    )
    Simulation(deployment, records.append).run(plans)
    return records


def _workers(scenario: Scenario) -> list[SimWorkerSpec]:
    fleet = ((Role.PREFILL, scenario.num_prefillers), (Role.DECODE, scenario.num_decoders))
    return [
        SimWorkerSpec(
            spec=WorkerSpec(
                worker_id=WorkerId(f"{role.value}-{number}"),
                role=role,
                tier=TierName(role.value),
                kv_capacity_tokens=scenario.kv_capacity_tokens,
            ),
            perf=A40_QWEN3_0_6B,
        )
        for role, count in fleet
        for number in range(count)
    ]
