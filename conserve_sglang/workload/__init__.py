"""Streams of conversations: how they look, when they arrive, and generators of them. Pure."""

from conserve_sglang.workload.arrivals import (
    LEAST_CV,
    MOST_CV,
    drawn_gaps,
    gamma_arrivals,
    poisson_arrivals,
    trace_arrivals,
    with_arrivals,
    with_gaps,
)
from conserve_sglang.workload.claude_code import claude_code_conversations
from conserve_sglang.workload.claude_code_params import CLAUDE_CODE, ClaudeCodeParams
from conserve_sglang.workload.histogram import Bin, Histogram, histograms_of
from conserve_sglang.workload.mini_swe import MINI_SWE, MiniSweParams, mini_swe_conversations
from conserve_sglang.workload.plan import ConversationPlan, TurnPlan
from conserve_sglang.workload.rng import Rng
from conserve_sglang.workload.scaling import (
    at_load,
    at_rate,
    cut_to_window,
    first_turns,
    with_gaps_scaled,
)
from conserve_sglang.workload.shape import Shape, Spread, shape_of, shares_nothing
from conserve_sglang.workload.window import (
    WindowScaling,
    longest_context_tokens,
    scaled,
    scaled_to_window,
)

__all__ = [
    "CLAUDE_CODE",
    "LEAST_CV",
    "MINI_SWE",
    "MOST_CV",
    "Bin",
    "ClaudeCodeParams",
    "ConversationPlan",
    "Histogram",
    "MiniSweParams",
    "Rng",
    "Shape",
    "Spread",
    "TurnPlan",
    "WindowScaling",
    "at_load",
    "at_rate",
    "claude_code_conversations",
    "cut_to_window",
    "drawn_gaps",
    "first_turns",
    "gamma_arrivals",
    "histograms_of",
    "longest_context_tokens",
    "mini_swe_conversations",
    "poisson_arrivals",
    "scaled",
    "scaled_to_window",
    "shape_of",
    "shares_nothing",
    "trace_arrivals",
    "with_arrivals",
    "with_gaps",
    "with_gaps_scaled",
]
