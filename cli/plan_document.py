"""A plan as JSON."""

import math
from typing import Any

from conserve_sglang.planning import Infeasible, Option, Plan, Request, Score
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.remedy import MEANING, Change, Remedy
from conserve_sglang.planning.request import KWH_A_DAY
from conserve_sglang.profiles import Profile

from .beyond_view import as_beyond
from .plan_run import Result


def as_document(result: Result) -> dict[str, Any]:
    """Plain JSON values; a latency that never ends is null."""
    plan = result.plan
    document: dict[str, Any] = {
        "modelled": True,
        "feasible": result.is_feasible,
        "command": result.wishes.command,
        **_request_document(plan.request),
        "profiles": [_profile_document(profile) for profile in result.profiles],
        "tiers_without_profile": list(result.left_out),
    }
    if isinstance(plan, Infeasible):
        older = {"older_tier_map": str(result.wishes.out) if result.older_map else None}
        return {**document, **_infeasible_document(plan), "tier_map": None, **older}
    return {**document, **_plan_document(plan), "tier_map": result.tier_map}


def _request_document(request: Request) -> dict[str, Any]:
    targets = request.targets
    return {
        "objective": request.objective.value,
        "load_per_s": request.load.rate_per_s,
        "workload": request.load.source,
        "level": targets.level,
        "ttfet_s": targets.ttfet_s,
        "last_turn_tbt_s": targets.tbt_s,
        "e2e_s": targets.e2e_s,
        "power_budget_w": request.power_budget_w,
        "energy_budget_kwh_a_day": (
            None if request.mean_power_w is None else request.mean_power_w * KWH_A_DAY
        ),
        "tool_gaps_s": request.load.gaps_s(targets.level),
    }


def _profile_document(profile: Profile) -> dict[str, Any]:
    power = profile.power_provenance
    return {
        "name": profile.name,
        "gpu": profile.gpu,
        "times": profile.provenance.kind,
        "times_error": profile.provenance.error,
        "times_source": profile.provenance.source,
        "power": None if power is None else power.kind,
        "power_error": None if power is None else power.error,
        "power_source": None if power is None else power.source,
    }


def _infeasible_document(plan: Infeasible) -> dict[str, Any]:
    return {
        "reason": plan.reason,
        "changes": [
            [_change_document(change) for change in remedy.changes] for remedy in plan.remedies
        ],
        "evidence": [_evidence_document(remedy) for remedy in plan.remedies],
        "smallest_means": MEANING,
        "nearest": None if plan.nearest is None else _option_document(plan.nearest),
    }


def _evidence_document(remedy: Remedy) -> dict[str, Any]:
    """How well a change is known to be the smallest; nulls where less was not tried."""
    proof = remedy.proof
    return {
        "text": remedy.evidence,
        "tried": None if proof is None else proof.tried.value,
        "fleets": None if proof is None else proof.num_tried,
        "step": None if proof is None else proof.step,
        "most_conversations": None if proof is None else proof.most,
    }


def _change_document(change: Change) -> dict[str, Any]:
    return {
        "text": change.text,
        "limit": change.limit.value,
        "tier": change.tier or None,
        "given": change.given,
        "needed": change.enough,
    }


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {
        "chosen": _option_document(plan.chosen),
        "margins": [
            {
                "name": margin.name,
                "limit": margin.limit,
                "value": _finite(margin.value),
                "unit": margin.unit,
                "share": _finite(margin.share),
            }
            for margin in plan.margins
        ],
        "binding": [one.text for one in plan.bindings],
        "runner_ups": [_option_document(option) for option in plan.runner_ups],
        "simulated": [_option_document(option) for option in plan.options],
        "seeds": [_score_document(score) for score in plan.chosen.by_seed],
        "load_sweep": [_score_document(score) for score in plan.load_sweep],
        "comparisons": [
            {
                "label": one.label,
                "why_not": one.why or None,
                "option": None if one.option is None else _option_document(one.option),
            }
            for one in plan.comparisons
        ],
        "doubts": [
            {
                "label": one.label,
                "is_same_choice": one.is_same_choice,
                **_score_document(one.score),
            }
            for one in plan.doubts
        ],
        "rejected": [_option_document(option) for option in plan.rejected],
        "caps_of_unknown_range": list(plan.doubtful_caps),
        "optimality_gap": plan.gap,
        "optimality": plan.proven,
        "columns": plan.num_columns,
        "optimizer_s": plan.optimizer_s,
        "simulation_s": plan.simulation_s,
    }


def _option_document(option: Option) -> dict[str, Any]:
    return {
        "label": option.label,
        "variant": option.variant,
        "policy": {"name": option.policy.name, "params": dict(option.policy.params)},
        "workers": [
            {**_config_document(config), "count": count} for config, count in option.counts.items()
        ],
        "peak_w": option.peak_w,
        "approximate_w": option.approximate_w,
        "approximate_ttfet_s": option.approximate_ttfet_s,
        **_score_document(option.score),
    }


def _config_document(config: Config) -> dict[str, Any]:
    return {
        "tier": config.tier,
        "role": config.role.value,
        "tp": config.tp,
        "power_cap_w": config.power_cap_w,
        "sm_clock_mhz": config.sm_clock_mhz,
        "profile": config.profile,
    }


def _score_document(score: Score) -> dict[str, Any]:
    return {
        "load_per_s": score.load_per_s,
        "ttfet_s": _finite(score.ttfet_s),
        "last_turn_tbt_s": _finite(score.tbt_s),
        "e2e_s": _finite(score.e2e_s),
        "ttfet_p50_s": _finite(score.ttfet_p50_s),
        "last_turn_tbt_p50_s": _finite(score.tbt_p50_s),
        "e2e_p50_s": _finite(score.e2e_p50_s),
        "slo_attainment": score.attained,
        "answered": score.answered,
        "mean_w": score.mean_w,
        "tokens_per_joule": score.tokens_per_joule,
        "simulated_conversations": score.num_conversations,
        "simulated_scale": score.scale,
        "runs": {
            "seeds": list(score.runs.seeds),
            "conversations": score.runs.num_conversations,
            "arriving_s": score.runs.arriving_s,
            "judged": score.runs.is_judged,
            "filled": score.runs.is_filled,
        },
        "growth_with_more_load": score.growth,
        "beyond_profile": [as_beyond(one) for one in score.beyond],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
