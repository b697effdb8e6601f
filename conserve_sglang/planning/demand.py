"""What a workload asks of each role, conversation by conversation, under one policy. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.workload import ConversationPlan, TurnPlan

MOST_TURNS = 3000
"""A sample of so many turns stands for a longer workload when columns are computed."""

Part = tuple[int, int]
"""A prefill: its new tokens, and the cached tokens before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A policy to plan for, and the roles its workers have.

    `max_local_append_tokens`: an append of so many tokens or more goes through a prefiller; None:
    nothing does. `kept_gap_s`: idle conversations keep their KV so long; after a longer tool gap
    the whole context is prefilled again. None: always kept, and room planned for it.
    """

    policy: PolicyChoice
    roles: frozenset[Role]
    max_local_append_tokens: int | None
    kept_gap_s: float | None

    @property
    def name(self) -> str:
        """For tables: the policy and what differs."""
        append, kept = self.max_local_append_tokens, self.kept_gap_s
        words = [self.policy.name]
        if append is not None:
            words.append(f"appends < {append}")
        words.append("idle KV kept" if kept is None else f"idle KV {kept:g} s")
        return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One conversation's work.

    `phase_one`: prefills on a prefiller, each with a KV transfer. `local`: prefills beside running
    decodes. `steps`: decode steps, a token each; `steps_before_last` those before the last turn,
    and `last_steps` the last turn's. `gap_s`: sum of its tool gaps. `context_steps`: sum over the
    steps of the context at each. `idle_kv_s`: token-seconds of KV held through tool gaps.
    """

    phase_one: tuple[Part, ...]
    local: tuple[Part, ...]
    steps: int
    steps_before_last: int
    last_steps: int
    gap_s: float
    context_steps: float
    idle_kv_s: float
    idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A workload's conversations as work; `tokens` is the mean of input and output of all turns,
    history counted each time, as arXiv 2606.01839 counts tokens per joule."""

    variant: Variant
    works: tuple[Work, ...]
    tokens: float

    def mean(self, values: Iterable[float]) -> float:
        """Mean over the conversations."""
        return sum(values) / len(self.works)


def demand_of(plans: Sequence[ConversationPlan], variant: Variant) -> Demand:
    """Turn a workload into work; a long one is thinned out evenly."""
    plans = thinned(plans)
    turns = [turn for plan in plans for turn in plan.turns]
    return Demand(
        variant=variant,
        works=tuple(_work(plan.turns, variant) for plan in plans),
        tokens=sum(turn.input_tokens + turn.output_tokens for turn in turns) / len(plans),
    )


def thinned(plans: Sequence[ConversationPlan]) -> Sequence[ConversationPlan]:
    """Every k-th conversation, so that at most about `MOST_TURNS` turns are left."""
    num_turns = sum(len(plan.turns) for plan in plans)
    every = max(1, -(-num_turns // MOST_TURNS))
    return plans[::every]


def _work(turns: Sequence[TurnPlan], variant: Variant) -> Work:
    phase_one: list[Part] = []
    local: list[Part] = []
    context_steps = idle_kv_s = idle_s = 0.0
    for turn in turns:
        is_kept = variant.kept_gap_s is None or turn.gap_s <= variant.kept_gap_s
        held_s = turn.gap_s if is_kept else variant.kept_gap_s or 0.0
        idle_kv_s += held_s * turn.shared_tokens
        idle_s += held_s
        cached = min(turn.shared_tokens, turn.input_tokens - 1) if is_kept else 0
        part = (turn.input_tokens - cached, cached)
        (phase_one if _goes_apart(part, variant) else local).append(part)
        steps = turn.output_tokens - 1
        context_steps += steps * (turn.input_tokens + turn.output_tokens / 2)
    last_steps = turns[-1].output_tokens - 1
    steps = sum(turn.output_tokens - 1 for turn in turns)
    return Work(
        phase_one=tuple(phase_one),
        local=tuple(local),
        steps=steps,
        steps_before_last=steps - last_steps,
        last_steps=last_steps,
        gap_s=sum(turn.gap_s for turn in turns[1:]),
        context_steps=context_steps,
        idle_kv_s=idle_kv_s,
        idle_s=idle_s,
    )


def _goes_apart(part: Part, variant: Variant) -> bool:
    """Whether a prefill goes through a prefiller: nothing cached, or a large append."""
    if variant.max_local_append_tokens is None:
        return False
    new, cached = part
    return cached == 0 or new >= variant.max_local_append_tokens
