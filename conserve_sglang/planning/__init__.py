"""Chooses a tier map: which GPUs, in which roles, how many, with which knobs.

`make_plan` answers a `Request`: operating points from profiles (`operating`), counts by an integer
program (`program`), the choice among its best answers by the simulator (`planner`).
"""

from conserve_sglang.planning.analysis import analysed
from conserve_sglang.planning.equipping import hardware_of, tiers_without
from conserve_sglang.planning.files import load_inventory, load_workload
from conserve_sglang.planning.inventory import GpuTier, Host, Inventory
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.plan import Infeasible, Option, Plan
from conserve_sglang.planning.planner import make_plan
from conserve_sglang.planning.problem import Config, Objective
from conserve_sglang.planning.request import Request, Targets
from conserve_sglang.planning.score import Score

__all__ = [
    "Config",
    "GpuTier",
    "Host",
    "Infeasible",
    "Inventory",
    "Load",
    "Objective",
    "Option",
    "Plan",
    "Request",
    "Score",
    "Targets",
    "analysed",
    "hardware_of",
    "load_inventory",
    "load_workload",
    "make_plan",
    "tiers_without",
]
