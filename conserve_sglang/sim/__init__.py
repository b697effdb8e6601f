"""The dispatcher's second executor: simulated SGLang-like workers in virtual time."""

from conserve_sglang.sim.alone import Alone, alone
from conserve_sglang.sim.decode_log import GapRun, gap_percentile_s, mean_gap_s
from conserve_sglang.sim.deployment import Deployment, WorkerLoss
from conserve_sglang.sim.driver import Simulation
from conserve_sglang.sim.from_tier_map import alone_tier, deployment_of, profiles_of
from conserve_sglang.sim.perf_model import PerfModel, PowerModel
from conserve_sglang.sim.power import ModelledEnergy, WorkerEnergy
from conserve_sglang.sim.reach import Beyond, beyond_points
from conserve_sglang.sim.records import ConversationRecord, Outcome, TurnRecord
from conserve_sglang.sim.summary import Figures, Summary, Tally
from conserve_sglang.sim.view import A40_QWEN3_0_6B, A40_QWEN3_0_6B_200W, perf_model_of
from conserve_sglang.sim.worker_spec import SimWorkerSpec

__all__ = [
    "A40_QWEN3_0_6B",
    "A40_QWEN3_0_6B_200W",
    "Alone",
    "Beyond",
    "ConversationRecord",
    "Deployment",
    "Figures",
    "GapRun",
    "ModelledEnergy",
    "Outcome",
    "PerfModel",
    "PowerModel",
    "SimWorkerSpec",
    "Simulation",
    "Summary",
    "Tally",
    "TurnRecord",
    "WorkerEnergy",
    "WorkerLoss",
    "alone",
    "alone_tier",
    "beyond_points",
    "deployment_of",
    "gap_percentile_s",
    "mean_gap_s",
    "perf_model_of",
    "profiles_of",
]
