"""The same conversations in the simulator, with a profile's unit costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.sim_fidelity.live import LiveConversation, LiveTurn, Run
from bench.sim_fidelity.sharing import UNSHARED, SharedCores, Slowdown
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.profiles import Profile
from conserve_sglang.sim import (
    ConversationRecord,
    PerfModel,
    Simulation,
    TurnRecord,
    deployment_of,
    perf_model_of,
)
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.workload import ConversationPlan, TurnPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """What a turn takes beside its worker's steps, from turns that had all servers to themselves.

    All of it beyond what the profile tells, requests and handoffs among that. `turn_s`: client,
    router, templates and tokens, of any turn. `handoff_s`: beside that, of a turn through a
    prefiller; less than nothing where the profile tells too much. `step_s`: of a token beyond a
    decode step of random text: grammar, parser, event.
    """

    turn_s: float
    handoff_s: float
    step_s: float


FAR_APART_S = 1000.0
NOTHING = Fronts(turn_s=0.0, handoff_s=0.0, step_s=0.0)


def fronts_of(alone: Sequence[Run], perf: PerfModel) -> Fronts:
    """What lone turns took beyond the profile, in the median. Raises ValueError without turns."""
    turns = [turn for run in alone for one in run.conversations for turn in one.turns]
    local = [turn for turn in turns if turn.prefiller is None]
    turn_s = median(_beyond(turn, perf) for turn in local)
    moved = [turn for turn in turns if turn.prefiller is not None]
    return Fronts(
        turn_s=max(0.0, turn_s),
        handoff_s=median(_beyond(turn, perf) for turn in moved) - max(0.0, turn_s)
        if moved
        else 0.0,
        step_s=median(turn.tbt_s - perf.decode_step(1, _context(turn)) for turn in turns),
    )


def _beyond(turn: LiveTurn, perf: PerfModel) -> float:
    return turn.ttft_s - sum(first_token_parts(turn, perf).values())


def first_token_parts(turn: LiveTurn, perf: PerfModel) -> dict[str, float]:
    """What the unit costs tell of a lone turn's first token."""
    tokens, is_moved = turn.prompt_tokens, turn.prefiller is not None
    return {
        "request": perf.request_s(tokens),
        "prefill": perf.prefill(0 if is_moved else turn.cached_tokens, tokens),
        "handoff": perf.handoff_s(tokens) + perf.transfer_s(tokens) if is_moved else 0.0,
    }


def _context(turn: LiveTurn) -> int:
    return turn.prompt_tokens + turn.output_tokens // 2


def with_fronts(perf: PerfModel, fronts: Fronts) -> PerfModel:
    """Unit costs with the longer handoff and step; `turn_s` is the client's."""
    if fronts == NOTHING:
        return perf
    return replace(
        perf,
        decode_s_per_request=perf.decode_s_per_request + fronts.step_s,
        handoff_times_s=tuple(max(0.0, s + fronts.handoff_s) for s in perf.handoff_times_s),
    )


def simulate(
    run: Run, tier_map: Path, profile: Profile, fronts: Fronts, slowdown: Slowdown = UNSHARED
) -> Run:
    """A live run's conversations, with its own lengths and arrivals, in virtual time. Lone ones
    come one by one, however long each takes. Every pair has met: live, in the round that warms up,
    which fills all decoders."""
    loaded = load_tier_map(tier_map)
    plain = deployment_of(loaded, {tier.name: profile for tier in loaded.tiers}, loaded.policy)
    perf = replace(with_fronts(perf_model_of(profile), fronts), first_handoff_s=0.0)
    deployment = replace(
        plain, workers=tuple(replace(worker, perf=perf) for worker in plain.workers)
    )
    records: dict[str, ConversationRecord] = {}
    plans = [
        _plan(number, one, FAR_APART_S * number if run.is_lone else one.arrived_at_s, fronts.turn_s)
        for number, one in enumerate(run.conversations)
    ]
    plans.sort(key=lambda plan: plan.arrived_at_s)
    simulation = Simulation(
        deployment, lambda record: records.update({record.plan.conversation_id: record})
    )
    if slowdown != UNSHARED and not run.is_lone:
        SharedCores(perf, slowdown).attach(simulation)
    simulation.run(plans)
    return Run(
        policy=run.policy,
        conversations=tuple(
            _conversation(records[_name(number)], fronts.turn_s)
            for number in range(len(run.conversations))
        ),
        load_average=run.load_average,
        is_lone=run.is_lone,
    )


def _name(number: int) -> ConversationId:
    return ConversationId(f"c{number}")


def _plan(
    number: int, one: LiveConversation, arrived_at_s: float, front_s: float
) -> ConversationPlan:
    """Each prompt holds the whole context before it, as the demo's do."""
    turns: list[TurnPlan] = []
    context = 0
    for turn in one.turns:
        turns.append(
            TurnPlan(
                input_tokens=turn.prompt_tokens,
                output_tokens=turn.output_tokens,
                shared_tokens=min(context, turn.prompt_tokens),
                gap_s=front_s if turns else 0.0,
            )
        )
        context = turn.prompt_tokens + turn.output_tokens
    return ConversationPlan(
        conversation_id=_name(number),
        turns=tuple(turns),
        arrived_at_s=arrived_at_s + front_s,
    )


def _conversation(record: ConversationRecord, front_s: float) -> LiveConversation:
    first, last = record.turns[0], record.turns[-1]
    began_s = first.arrived_at_s - front_s
    return LiveConversation(
        arrived_at_s=began_s,
        ttfet_s=last.first_token_at_s - began_s,
        e2e_s=last.last_token_at_s - began_s,
        turns=tuple(_turn(turn, front_s) for turn in record.turns),
    )


def _turn(turn: TurnRecord, front_s: float) -> LiveTurn:
    decoding_s = turn.last_token_at_s - turn.first_token_at_s
    return LiveTurn(
        prompt_tokens=turn.input_tokens,
        cached_tokens=turn.cached_tokens,
        output_tokens=turn.output_tokens,
        prefiller=turn.prefiller,
        decoder=turn.decoder,
        ttft_s=turn.ttft_s + front_s,
        tbt_s=decoding_s / max(1, turn.output_tokens - 1),
        e2e_s=turn.last_token_at_s - turn.arrived_at_s + front_s,
    )


def described(fronts: Fronts) -> Mapping[str, float]:
    """For the record, in milliseconds."""
    return {
        "turn_ms": round(1e3 * fronts.turn_s, 2),
        "handoff_ms": round(1e3 * fronts.handoff_s, 2),
        "step_ms": round(1e3 * fronts.step_s, 3),
    }
