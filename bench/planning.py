"""How long does a plan take, from four GPUs to six tiers of 512?

Plans the paper's workload (generated) from shipped profiles, in this process and on one core (CPU
seconds of this process, which HiGHS runs in): operating points and integer programs apart from the
simulation of candidates. Not measured: how good the plans are; reading files.

    python -m bench.planning
"""

import argparse
import os
import random
import time
from typing import Any

from bench.harness import save
from conserve_sglang.planning import (
    GpuTier,
    Host,
    Infeasible,
    Inventory,
    Load,
    Request,
    Targets,
    hardware_of,
    make_plan,
)
from conserve_sglang.planning.shortlist import shortlist
from conserve_sglang.profiles import shipped_profile, shipped_profiles
from conserve_sglang.workload import mini_swe_conversations

GPUS = ("H100", "L4", "L40S", "A40", "A100", "H200")
MODEL = "Qwen/Qwen3-0.6B"
SIZES = ((2, 4), (6, 8), (6, 64), (6, 512))
PER_HOST = 8
LOAD_PER_GPU = 0.15


def an_inventory(num_tiers: int, num_gpus: int) -> Inventory:
    """Tiers of different GPUs, hosts of eight."""
    hosts = range(-(-num_gpus // PER_HOST))
    return Inventory(
        model=MODEL,
        tiers=tuple(
            GpuTier(
                name=gpu.lower(),
                gpu=gpu,
                hosts=tuple(
                    Host(name=f"{gpu.lower()}-{host}", gpu_ids=tuple(range(min(8, num_gpus))))
                    for host in hosts
                ),
            )
            for gpu in GPUS[:num_tiers]
        ),
    )


def measure(num_tiers: int, num_gpus: int) -> dict[str, Any]:
    """Plan once; its parts in CPU and in wall seconds."""
    profiles = [shipped_profile(name) for name in shipped_profiles()]
    load = Load(
        conversations=tuple(mini_swe_conversations(600, random.Random(1))),
        rate_per_s=LOAD_PER_GPU * num_tiers * num_gpus,
        has_own_times=False,
        seed=0,
        source="generated",
    )
    inventory = an_inventory(num_tiers, num_gpus)
    cpu, wall = time.process_time(), time.perf_counter()
    request = Request(
        inventory=inventory,
        hardware=hardware_of(inventory, profiles),
        load=load,
        targets=Targets(ttfet_s=60.0, tbt_s=0.05),
    )
    found = shortlist(request)
    optimizer = time.process_time() - cpu, time.perf_counter() - wall
    cpu, wall = time.process_time(), time.perf_counter()
    plan = make_plan(request)
    whole = time.process_time() - cpu, time.perf_counter() - wall
    assert not isinstance(plan, Infeasible), plan.reason
    return {
        "tiers": num_tiers,
        "gpus_per_tier": num_gpus,
        "operating_points": found.num_columns,
        "candidates": len(found.candidates),
        "optimizer_cpu_s": round(optimizer[0], 2),
        "optimizer_wall_s": round(optimizer[1], 2),
        "plan_cpu_s": round(whole[0], 2),
        "plan_wall_s": round(whole[1], 2),
        "gap": plan.gap,
        "gpus_used": plan.chosen.num_gpus,
        "fleets_simulated": len(plan.options),
    }


def main() -> None:
    """Measure each size on one core, print it and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--largest-only", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [measure(*size) for size in (SIZES[-1:] if options.largest_only else SIZES)]
    for row in rows:
        print(
            f"{row['tiers']} tiers x {row['gpus_per_tier']:3} GPUs: optimizer"
            f" {row['optimizer_cpu_s']:5.2f} CPU s, whole plan {row['plan_cpu_s']:5.2f} CPU s"
            f" ({row['plan_wall_s']:.1f} s), gap {row['gap']:.3%}, {row['gpus_used']} GPUs used"
        )
    if not options.no_save:
        print(save("planning", {"rows": rows}))


if __name__ == "__main__":
    main()
