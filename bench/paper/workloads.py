"""The conversations that are played, and what a load of 1 means for them."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.core.stats import percentile
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.sim import A40_QWEN3_0_6B
from conserve_sglang.sim.alone import prefill_alone_s
from conserve_sglang.traces import read_trace
from conserve_sglang.workload import (
    ConversationPlan,
    claude_code_conversations,
    first_turns,
    gamma_arrivals,
    mini_swe_conversations,
    poisson_arrivals,
    scaled_to_window,
    with_arrivals,
)

PAPER_LOADS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.634, 2.124)
"""Conversations a second: the paper's six, and 1.3 times the last, its saturation."""

RELATIVE_LOADS = (0.25, 0.5, 0.75, 1.0, 1.3)
WINDOW_TOKENS = 40_960
MAX_TURNS = 30
MAX_GAP_S = 120.0
NUM_GPUS = 4
USUAL_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Conversations without arrival times. `rate_of_load_1` in conversations a second; `cv`, the
    coefficient of variation of the gaps between arrivals, 1 for Poisson."""

    name: str
    statement: str
    plans: tuple[ConversationPlan, ...]
    loads: tuple[float, ...]
    rate_of_load_1: float
    cv: float = 1.0

    @property
    def short_tokens(self) -> int:
        """The median prompt with the room that is kept for its answer: half of the turns are
        short."""
        prompts = sorted(turn.input_tokens for plan in self.plans for turn in plan.turns)
        return int(percentile(prompts, 50)) + DispatchSettings().reserve_output_tokens

    def timed(self, load: float, seed: int) -> Iterator[ConversationPlan]:
        """The conversations with arrival times; the same for every policy."""
        rng = random.Random(seed)
        rate = load * self.rate_of_load_1
        times = poisson_arrivals(rate, rng) if self.cv == 1 else gamma_arrivals(rate, self.cv, rng)
        return with_arrivals(self.plans, times)


def paper(data: Path) -> Workload:
    """The paper's: the first 256 conversations of its trace, 5 turns, no tool gaps."""
    found = read_trace(data / "conserve" / "conserve_mini_swe_agent_lengths.csv").conversations
    return Workload(
        name="paper",
        statement="first 256 conversations of the paper's trace, 5 turns, Poisson arrivals",
        plans=tuple(first_turns(found[:256], 5)),
        loads=PAPER_LOADS,
        rate_of_load_1=1.0,
    )


def claude_code(data: Path) -> Workload:
    """Claude Code sessions (WEKA), scaled to the model's window."""
    path = data / "claude_code_weka" / "claude_code_agent_turns.csv"
    scaling = scaled_to_window(read_trace(path).conversations, WINDOW_TOKENS, fitting=0.9)
    plans = tuple(map(_hurried, first_turns(scaling.conversations, MAX_TURNS)))
    return Workload(
        name="claude_code",
        statement=(
            f"{len(plans)} Claude Code sessions, {scaling.statement()}; first {MAX_TURNS} turns,"
            f" tool gaps of at most {MAX_GAP_S:.0f} s"
        ),
        plans=plans,
        loads=RELATIVE_LOADS,
        rate_of_load_1=rate_of_load_1(plans),
    )


def bursty(data: Path) -> Workload:
    """A generated mix in bursts; needs no data."""
    rng = random.Random(20260601839)
    agents = list(mini_swe_conversations(200, rng))
    sessions = scaled_to_window(claude_code_conversations(100, rng), WINDOW_TOKENS, fitting=0.9)
    plans = agents + [
        replace(_hurried(plan), conversation_id=ConversationId(f"session-{number}"))
        for number, plan in enumerate(first_turns(sessions.conversations, MAX_TURNS))
    ]
    rng.shuffle(plans)
    return Workload(
        name="bursty",
        statement=(
            f"generated: 200 mini-swe-agent conversations and {len(plans) - 200} like Claude Code's"
            f" ({sessions.statement()}; first {MAX_TURNS} turns, gaps of at most"
            f" {MAX_GAP_S:.0f} s), gamma arrivals with a coefficient of variation of 4"
        ),
        plans=tuple(plans),
        loads=RELATIVE_LOADS,
        rate_of_load_1=rate_of_load_1(plans),
        cv=4.0,
    )


WORKLOADS: dict[str, Callable[[Path], Workload]] = {
    "paper": paper,
    "claude_code": claude_code,
    "bursty": bursty,
}


def rate_of_load_1(plans: Sequence[ConversationPlan]) -> float:
    """Conversations a second that keep four GPUs busy, if every context stays resident and decode
    steps have a batch of 16: a yardstick from unit costs, the same for all policies."""
    perf = A40_QWEN3_0_6B
    fixed_s = perf.decode_step_s / USUAL_BATCH + perf.decode_s_per_request
    work_s = 0.0
    for plan in plans:
        for turn in plan.turns:
            step_s = fixed_s + perf.decode_s_per_kv_token * turn.input_tokens
            work_s += prefill_alone_s(turn, perf) + turn.output_tokens * step_s
    return NUM_GPUS * len(plans) / work_s


def _hurried(plan: ConversationPlan) -> ConversationPlan:
    turns = tuple(replace(turn, gap_s=min(turn.gap_s, MAX_GAP_S)) for turn in plan.turns)
    return replace(plan, turns=turns)
