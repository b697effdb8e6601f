"""The policies that are compared, and the four A40s they run on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import FlagValue, PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import POLICIES, make_policy
from conserve_sglang.sim import A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W, Deployment, SimWorkerSpec

KV_TOKENS = 308_448
CHUNK_TOKENS = 2944
PATIENT = DispatchSettings(
    max_phase_one_turns=10**6, max_tail_turns=10**6, queue_timeout_s=1e9, conversation_ttl_s=1e9
)
"""Nobody is turned away: latencies of all conversations count, however late."""

CAPS = ("300/300", "300/200", "200/200")
"""Watts of the prefiller and of the three decoders. Of four mixed engines, one and three."""

THREE_TIERS = "300/200/300"
"""The same with two decode tiers: one decoder, of 200 W, for short contexts only, two for all. Of
four mixed engines, one is for short contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row of the tables. `is_ours`: for the claims; `targets`: parameters that come from the
    workload's SLO, as parts of its TTFET or TBT."""

    name: str
    policy: str
    params: Mapping[str, FlagValue] = field(default_factory=dict)
    is_mixed: bool = False
    is_ours: bool = False
    keeps_prompts: bool = True
    ttfet_parts: Mapping[str, float] = field(default_factory=dict)
    tbt_parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def only_simulated(self) -> bool:
        """Whether SGLang's servers cannot run it."""
        return POLICIES[self.policy].only_simulated is not None

    @property
    def label(self) -> str:
        """The name in tables: a star where it is simulated only."""
        return f"{self.name} *" if self.only_simulated else self.name


LATE = {"late_after_s": 1 / 3}
CANDIDATES = (
    Candidate(name="collocated", policy="colocated", is_mixed=True),
    Candidate(
        name="collocated, least backlog",
        policy="colocated",
        params={"choose": "least_backlog"},
        is_mixed=True,
    ),
    Candidate(name="full disagg, no reuse", policy="stock-pd", keeps_prompts=False),
    Candidate(name="stock PD", policy="stock-pd"),
    Candidate(name="stock PD + decode radix", policy="stock-pd", params={"sticky": True}),
    Candidate(name="coin flip 10 %", policy="coin-flip"),
    Candidate(name="coin flip 50 %", policy="coin-flip", params={"error_rate": 0.5}),
    Candidate(name="dynamo-like", policy="dynamo-like"),
    Candidate(name="dynamo-like, queue 2", policy="dynamo-like", params={"max_prefill_queue": 2}),
    Candidate(name="ampd-like", policy="ampd-like", tbt_parts={"tbt_target_s": 1.0}),
    Candidate(name="static PPD", policy="static-ppd"),
    Candidate(name="ConServe, blind", policy="conserve-blind"),
    Candidate(name="conserve", policy="conserve"),
    Candidate(name="work-conserving", policy="work-conserving", is_ours=True),
    Candidate(
        name="work-conserving, late last",
        policy="work-conserving",
        is_ours=True,
        ttfet_parts=LATE,
    ),
    Candidate(
        name="work-conserving, by history",
        policy="work-conserving",
        params={"by_history": True},
        is_ours=True,
    ),
    Candidate(name="work-conserving, mixed", policy="work-conserving", is_mixed=True, is_ours=True),
    Candidate(name="work-conserving-tails", policy="work-conserving-tails", is_ours=True),
    Candidate(
        name="conserve-pack", policy="conserve-pack", is_ours=True, tbt_parts={"tbt_target_s": 1.0}
    ),
)


def deployment(
    candidate: Candidate,
    caps: str,
    slo: Mapping[str, float],
    interval: int = 0,
    short_tokens: int = 0,
) -> Deployment:
    """Four A40s under the caps. `slo`: the workload's targets in seconds, "ttfet" and "tbt".
    `interval`: decode steps between two prefill steps, on every engine that decodes.
    `short_tokens`: with three tiers, the longest context of the second."""
    params = dict(candidate.params)
    params |= {name: part * slo["ttfet"] for name, part in candidate.ttfet_parts.items()}
    params |= {name: part * slo["tbt"] for name, part in candidate.tbt_parts.items()}
    watts = caps.split("/")
    workers = []
    for number in range(4):
        role = Role.MIXED if candidate.is_mixed else Role.DECODE if number else Role.PREFILL
        cap = watts[min(number, len(watts) - 1)]
        is_short = number == 1 and caps == THREE_TIERS
        decodes = role is not Role.PREFILL or candidate.policy == "work-conserving-tails"
        workers.append(
            SimWorkerSpec(
                spec=WorkerSpec(
                    worker_id=WorkerId(f"{role.value}-{number}"),
                    role=role,
                    tier=TierName(f"{role.value}-{cap}w{'-short' if is_short else ''}"),
                    kv_capacity_tokens=KV_TOKENS,
                    max_context_tokens=short_tokens if is_short else None,
                ),
                perf=A40_QWEN3_0_6B if cap == "300" else A40_QWEN3_0_6B_200W,
                chunk_tokens=CHUNK_TOKENS,
                prefill_decode_interval=interval if decodes else 0,
                keeps_prompts=candidate.keeps_prompts,
            )
        )
    policy = make_policy(PolicyChoice(name=candidate.policy, params=params))
    return Deployment(workers=tuple(workers), policy=policy, settings=replace(PATIENT))
