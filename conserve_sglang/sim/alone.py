"""What a conversation's latencies are when it has one worker to itself: what others are divided by.

One mixed worker, batch 1, its context always resident, no KV transfer and no wait: the same for
every policy, so that ratios of different policies can be compared.
"""

from dataclasses import dataclass

from conserve_sglang.sim.perf_model import PerfModel, run_length
from conserve_sglang.workload import ConversationPlan, TurnPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Latencies of a conversation run alone; no TBT when the last turn has one token."""

    ttfet_s: float
    e2e_s: float
    last_turn_tbt_s: float | None


def alone(plan: ConversationPlan, perf: PerfModel) -> Alone:
    """Closed form, tool gaps included."""
    now = 0.0
    for turn in plan.turns:
        first_token_at_s = now + turn.gap_s + prefill_alone_s(turn, perf)
        decode_s = decode_alone_s(turn, perf)
        now = first_token_at_s + decode_s
    num_gaps = plan.turns[-1].output_tokens - 1
    return Alone(
        ttfet_s=first_token_at_s - plan.turns[0].gap_s,
        e2e_s=now - plan.turns[0].gap_s,
        last_turn_tbt_s=decode_s / num_gaps if num_gaps else None,
    )


def prefill_alone_s(turn: TurnPlan, perf: PerfModel) -> float:
    """Prefill of a turn whose shared prefix is resident."""
    tokens, cached = turn.input_tokens, turn.shared_tokens
    return perf.prefill(cached if cached < tokens else tokens - 1, tokens)


def decode_alone_s(turn: TurnPlan, perf: PerfModel) -> float:
    """Decode of a turn in a batch of its own."""
    first = perf.decode_step(1, turn.input_tokens + 1)
    return run_length(turn.output_tokens - 1, first, perf.decode_s_per_kv_token)
