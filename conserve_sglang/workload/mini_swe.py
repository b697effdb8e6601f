"""Conversations shaped like the paper's workload: mini-swe-agent over SWE-bench.

Parameters are quantiles of conserve_mini_swe_agent_lengths.csv (22,805 turns of 2,294
conversations, github.com/eicchen/conserve @ 4ab277d, Apache-2.0); between two of them a length is
drawn uniformly. Turns are drawn independently of each other, which the trace's are not quite.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.workload.plan import ConversationPlan, TurnPlan
from conserve_sglang.workload.quantiles import LEVELS, Quantiles
from conserve_sglang.workload.rng import Rng


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniSweParams:
    """Lengths in tokens. `usual_append_share` of the later turns append `usual_append_tokens`
    exactly, the others draw from `other_append`. `gap_s` is constant: the trace has no tool gaps.
    """

    num_turns: int
    first_input: Quantiles
    usual_append_tokens: int
    usual_append_share: float
    other_append: Quantiles
    first_output: Quantiles
    later_output: Quantiles
    gap_s: float = 0.0


MINI_SWE = MiniSweParams(
    num_turns=5,  # the paper plays the first 5 of mostly 10
    first_input=Quantiles(
        levels=LEVELS,
        values=(
            3303, 7246, 10262, 12240, 13545, 14864, 15889, 16482, 16890, 17295, 17876, 18804, 20085,
            26363, 56635,
        ),
    ),
    usual_append_tokens=67,
    usual_append_share=20_250 / 20_511,
    other_append=Quantiles(levels=(0.0, 0.25, 0.5, 1.0), values=(62, 69, 69, 313)),
    first_output=Quantiles(
        levels=LEVELS,
        values=(58, 65, 69, 75, 79, 87, 101, 130, 162, 190, 227, 253, 279, 343, 374),
    ),
    later_output=Quantiles(  # of turns 2 to 5
        levels=LEVELS,
        values=(29, 33, 34, 37, 38, 41, 49, 66, 171, 264, 709, 3305, 4651, 7314, 9619),
    ),
)  # fmt: skip


def mini_swe_conversations(
    count: int, rng: Rng, params: MiniSweParams = MINI_SWE
) -> Iterator[ConversationPlan]:
    """`count` conversations, all arriving at 0; see `with_arrivals`."""
    for number in range(count):
        yield ConversationPlan(
            conversation_id=ConversationId(f"mini-swe-{number:07}"),
            turns=tuple(_turns(rng, params)),
        )


def _turns(rng: Rng, params: MiniSweParams) -> Iterator[TurnPlan]:
    first = TurnPlan(
        input_tokens=params.first_input.draw(rng), output_tokens=params.first_output.draw(rng)
    )
    yield first
    context = first.input_tokens + first.output_tokens
    for _ in range(params.num_turns - 1):
        is_usual = rng.random() < params.usual_append_share
        append = params.usual_append_tokens if is_usual else params.other_append.draw(rng)
        output = params.later_output.draw(rng)
        yield TurnPlan(
            input_tokens=context + append,
            output_tokens=output,
            shared_tokens=context,
            gap_s=params.gap_s,
        )
        context += append + output
