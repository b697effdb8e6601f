"""How good and how sure a plan is: against narrower choices, other loads, other seeds, and profiles
that are wrong."""

from collections.abc import Mapping
from dataclasses import replace

from conserve_sglang.planning.choosing import Choosing
from conserve_sglang.planning.hardware import Hardware
from conserve_sglang.planning.inventory import lacking_roles
from conserve_sglang.planning.plan import Comparison, Doubt, Infeasible, Option, Plan
from conserve_sglang.planning.planner import Bench, Told, make_plan
from conserve_sglang.planning.problem import Objective
from conserve_sglang.planning.program import solve
from conserve_sglang.planning.request import Request, is_capped
from conserve_sglang.planning.score import Fleet, Score, simulate
from conserve_sglang.planning.shortlist import Candidate, problems_of
from conserve_sglang.sim import PowerModel

LOAD_FACTORS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3)
TIME_FACTORS = (0.8, 1.25)
WATT_FACTORS = (0.75, 1.25)
"""The errors that estimated power is stated with, and as much for times."""
NUM_JUDGED = 3
"""Runners-up that are judged, not only simulated for a short time."""
FRONT_FACTORS = (0.4, 0.55, 0.75, 1.5, 3.0)


def analysed(plan: Plan, told: Told = lambda _: None) -> Plan:
    """The plan with everything a report says beside the choice."""
    request, chosen = plan.request, plan.chosen
    rate = chosen.score.load_per_s
    choosing = Choosing(request, Bench(request).hardware(), told)
    sweep = []
    for factor in LOAD_FACTORS:
        told(f"simulating {factor:g} x the load")
        is_own = factor == 1.0
        sweep.append(chosen.by_seed[0] if is_own else _long(chosen, Bench(request), rate * factor))
    for option in plan.runner_ups[:NUM_JUDGED]:
        choosing.judged(option)
    front = _front(plan, told)
    return replace(
        plan,
        options=(*choosing.known(plan.options), *front),
        load_sweep=tuple(sweep),
        comparisons=tuple(_comparisons(plan, told)),
        doubts=tuple(_doubts(plan, told)),
    )


def _front(plan: Plan, told: Told) -> list[Option]:
    """The best fleets for tighter and looser TTFET targets than the one that is chosen for."""
    found: list[Option] = []
    known = [dict(option.counts) for option in plan.options]
    for factor in FRONT_FACTORS:
        target = plan.chosen.score.ttfet_s * factor
        told(f"planning for a TTFET of {target:.3g} s")
        targets = replace(plan.request.targets, ttfet_s=target)
        problems = problems_of(replace(plan.request, targets=targets))
        solved = [(solve(problem), variant) for variant, problem in problems]
        answers = [(one.answer, variant) for one, variant in solved if one is not None]
        if not answers or plan.request.objective is Objective.LOAD:
            continue
        answer, variant = min(answers, key=lambda pair: pair[0].value(plan.request.objective))
        label = f"for a TTFET of {target:.3g} s"
        candidate = Candidate(variant=variant, answer=answer, label=label)
        if candidate.counts not in known:
            known.append(candidate.counts)
            found.append(Bench(plan.request).try_out(candidate, variant.policy))
    return found


def _comparisons(plan: Plan, told: Told) -> list[Comparison]:
    """Each tier alone, and everything without caps."""
    request = plan.request
    found = []
    tiers = sorted({one.tier for one in request.hardware})
    for tier in tiers if len(tiers) > 1 else []:
        told(f"planning with tier {tier} alone")
        found.append(_best(request.with_only(tier), f"{tier} alone"))
    if any(is_capped(one) or one.sm_clock_mhz for one in request.hardware):
        told("planning without caps")
        free = request.without_caps()
        if free.hardware:
            found.append(_best(free, "no caps"))
    return found


def _best(request: Request, label: str) -> Comparison:
    own = {one.tier for one in request.hardware}
    lacking = lacking_roles(tier for tier in request.inventory.tiers if tier.name in own)
    if lacking is not None:
        return Comparison(label=label, option=None, why=lacking)
    plan = make_plan(request, is_brief=True)
    if isinstance(plan, Infeasible):
        return Comparison(label=label, option=plan.nearest, why=_why(plan))
    return Comparison(label=label, option=plan.chosen)


def _why(plan: Infeasible) -> str:
    if plan.remedies:
        first = plan.remedies[0]
        return f"needs {first.text} ({first.evidence})"
    return plan.reason


def _doubts(plan: Plan, told: Told) -> list[Doubt]:
    """All times, or all watts, longer or shorter than the profiles say."""
    found = []
    for factor in TIME_FACTORS:
        told(f"simulating with all times x {factor:g}")
        changed = replace(
            plan.request, hardware=tuple(slower(one, factor) for one in plan.request.hardware)
        )
        score = _long(plan.chosen, Bench(changed), plan.chosen.score.load_per_s)
        label = f"all times x {factor:g}"
        found.append(Doubt(label=label, score=score, is_same_choice=_is_same(plan, changed)))
    for tier in sorted({config.tier for config in plan.chosen.counts}):
        for factor in WATT_FACTORS:
            told(f"simulating with watts of {tier} x {factor:g}")
            changed = replace(
                plan.request,
                hardware=tuple(
                    thirstier(one, factor) if one.tier == tier else one
                    for one in plan.request.hardware
                ),
            )
            score = _long(plan.chosen, Bench(changed), plan.chosen.score.load_per_s)
            label = f"watts of {tier} x {factor:g}"
            found.append(Doubt(label=label, score=score, is_same_choice=_is_same(plan, changed)))
    return found


def _long(option: Option, bench: Bench, rate_per_s: float) -> Score:
    """One run as long as those that the option was judged by, with the first of its seeds."""
    request, runs = bench.request, option.score.runs
    fleet = Fleet(counts=option.counts, policy=option.policy, hardware=bench.hardware())
    seed, num = runs.seeds[0], runs.num_conversations
    return simulate(fleet, request.load, rate_per_s, request.targets, seed, num)


def _is_same(plan: Plan, changed: Request) -> bool | None:
    """Whether the integer program's first choice stays the same; None if it has none."""
    before, after = _first_choice(plan.request), _first_choice(changed)
    return None if before is None or after is None else before == after


def _first_choice(request: Request) -> Mapping[object, int] | None:
    best: tuple[float, Mapping[object, int]] | None = None
    for _, problem in problems_of(request):
        solved = solve(problem)
        if solved is not None:
            counts: Mapping[object, int] = {
                column.config: count for column, count in solved.answer.counts.items()
            }
            value = solved.answer.value(request.objective)
            if best is None or value < best[0]:
                best = value, counts
    return None if best is None else best[1]


def slower(hardware: Hardware, factor: float) -> Hardware:
    """The same where everything it computes takes `factor` times as long, at the same watts."""
    perf, power = hardware.perf, hardware.power
    return replace(
        hardware,
        perf=replace(
            perf,
            decode_step_s=perf.decode_step_s * factor,
            decode_s_per_request=perf.decode_s_per_request * factor,
            decode_s_per_kv_token=perf.decode_s_per_kv_token * factor,
            prefill_s=_each(perf.prefill_s, factor),
            append_floor_s=_each(perf.append_floor_s, factor),
            power=_scaled(power, power.idle_w, factor),
        ),
    )


def thirstier(hardware: Hardware, factor: float) -> Hardware:
    """The same where it draws `factor` times as much, idle included."""
    power = hardware.power
    changed = _scaled(power, power.idle_w * factor, factor)
    return replace(hardware, perf=replace(hardware.perf, power=changed))


def _scaled(power: PowerModel, idle_w: float, factor: float) -> PowerModel:
    return replace(
        power,
        idle_w=idle_w,
        decode_step_j=power.decode_step_j * factor,
        decode_j_per_request=power.decode_j_per_request * factor,
        decode_j_per_kv_token=power.decode_j_per_kv_token * factor,
        prefill_j=_each(power.prefill_j, factor),
        append_floor_j=_each(power.append_floor_j, factor),
    )


def _each(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)
