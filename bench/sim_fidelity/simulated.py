"""The same conversations in the simulator, with a profile's unit costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.sim_fidelity.live import LiveConversation, LiveTurn, Run
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.profiles import Profile
from conserve_sglang.sim import (
    ConversationRecord,
    PerfModel,
    Simulation,
    TurnRecord,
    deployment_of,
)
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.workload import ConversationPlan, TurnPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """What a turn takes beside its worker's steps, from turns that had all servers to themselves.

    `turn_s`: client, router, HTTP, templates and tokens, of any turn. `hand_over_s`: beside that
    and the prefill, of a turn with a prefiller: bootstrap, KV and waiting for its arrival to be
    seen. `step_s`: of a token beyond a decode step of random text: grammar, parser, event.
    """

    turn_s: float
    hand_over_s: float
    step_s: float


NOTHING = Fronts(turn_s=0.0, hand_over_s=0.0, step_s=0.0)


def fronts_of(alone: Sequence[Run], perf: PerfModel) -> Fronts:
    """What lone turns took beyond the profile, in the median. Raises ValueError without turns."""
    turns = [turn for run in alone for one in run.conversations for turn in one.turns]
    local = [turn for turn in turns if turn.prefiller is None]
    turn_s = median(_beyond(turn, perf) for turn in local)
    moved = [turn for turn in turns if turn.prefiller is not None]
    return Fronts(
        turn_s=max(0.0, turn_s),
        hand_over_s=max(0.0, median(_beyond(turn, perf) for turn in moved) - turn_s)
        if moved
        else 0.0,
        step_s=median(turn.tbt_s - perf.decode_step(1, _context(turn)) for turn in turns),
    )


def _beyond(turn: LiveTurn, perf: PerfModel) -> float:
    cached = 0 if turn.prefiller is not None else turn.cached_tokens
    return turn.ttft_s - perf.prefill(cached, turn.prompt_tokens)


def _context(turn: LiveTurn) -> int:
    return turn.prompt_tokens + turn.output_tokens // 2


def with_fronts(perf: PerfModel, fronts: Fronts) -> PerfModel:
    """Unit costs with the hand-over and the longer step; `turn_s` is the client's."""
    if fronts == NOTHING:
        return perf
    return replace(
        perf,
        decode_step_s=perf.decode_step_s + fronts.step_s,
        transfer_tokens=(1,),
        transfer_times_s=(fronts.hand_over_s,),
    )


def simulate(run: Run, tier_map: Path, profile: Profile, fronts: Fronts) -> Run:
    """A live run's conversations, with its own lengths and arrivals, in virtual time."""
    loaded = load_tier_map(tier_map)
    plain = deployment_of(loaded, {tier.name: profile for tier in loaded.tiers}, loaded.policy)
    workers = tuple(
        replace(worker, perf=with_fronts(worker.perf, fronts)) for worker in plain.workers
    )
    deployment = replace(plain, workers=workers)
    records: dict[str, ConversationRecord] = {}
    plans = [_plan(number, one, fronts.turn_s) for number, one in enumerate(run.conversations)]
    plans.sort(key=lambda plan: plan.arrived_at_s)
    Simulation(
        deployment, lambda record: records.update({record.plan.conversation_id: record})
    ).run(plans)
    return Run(
        policy=run.policy,
        conversations=tuple(
            _conversation(records[_name(number)], fronts.turn_s)
            for number in range(len(run.conversations))
        ),
        load_average=run.load_average,
    )


def _name(number: int) -> ConversationId:
    return ConversationId(f"c{number}")


def _plan(number: int, one: LiveConversation, front_s: float) -> ConversationPlan:
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
        arrived_at_s=one.arrived_at_s + front_s,
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
        "hand_over_ms": round(1e3 * fronts.hand_over_s, 2),
        "step_ms": round(1e3 * fronts.step_s, 3),
    }
