"""A conversation while the simulator plays it."""

from dataclasses import dataclass, field

from conserve_sglang.sim.records import TurnRecord
from conserve_sglang.sim.worker import SimWorker
from conserve_sglang.workload import ConversationPlan


@dataclass(slots=True, eq=False)
class Playing:
    """A conversation on its way through its turns."""

    plan: ConversationPlan
    records: list[TurnRecord] = field(default_factory=list)
    prefillers: list[SimWorker] = field(default_factory=list)
