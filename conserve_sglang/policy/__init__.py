"""One question, one answer: where does this turn run."""

from conserve_sglang.policy.api import (
    Answer,
    ClusterView,
    Defer,
    DeferReason,
    PhaseOneCause,
    Placement,
    PlacementPolicy,
    PlacementReason,
    Reject,
    RejectReason,
    TurnView,
)
from conserve_sglang.policy.registry import PARAMS, POLICIES, make_policy

__all__ = [
    "PARAMS",
    "POLICIES",
    "Answer",
    "ClusterView",
    "Defer",
    "DeferReason",
    "PhaseOneCause",
    "Placement",
    "PlacementPolicy",
    "PlacementReason",
    "Reject",
    "RejectReason",
    "TurnView",
    "make_policy",
]
