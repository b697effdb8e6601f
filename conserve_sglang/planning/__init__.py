"""Chooses a tier map: which GPUs, in which roles, how many, with which knobs."""

from conserve_sglang.planning.problem import (
    Answer,
    Column,
    Config,
    GpuLimit,
    Limits,
    Objective,
    Problem,
)
from conserve_sglang.planning.program import Solved, solve
from conserve_sglang.planning.rows import Limit

__all__ = [
    "Answer",
    "Column",
    "Config",
    "GpuLimit",
    "Limit",
    "Limits",
    "Objective",
    "Problem",
    "Solved",
    "solve",
]
