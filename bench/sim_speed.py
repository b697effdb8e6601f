"""How many turns a second does the simulator play, and does its memory stay flat?

Plays the paper's workload (generated, 5 turns a conversation) under policy `conserve` on 16 and on
1,000 simulated workers, in this process and on one core: dispatcher, workers, records and summary.
The load is `--load` conversations per second and decoder. Not measured: reading a trace.

    python -m bench.sim_speed
"""

import argparse
import gc
import random
import time
from collections.abc import Iterator
from typing import Any

from bench.harness import rss_bytes, save
from conserve_sglang.core.ids import TierName, WorkerId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role, WorkerSpec
from conserve_sglang.dispatch import DispatchSettings
from conserve_sglang.policy import make_policy
from conserve_sglang.sim import A40_QWEN3_0_6B, Deployment, Simulation, SimWorkerSpec, Tally
from conserve_sglang.workload import mini_swe_conversations, poisson_arrivals, with_arrivals

FLEETS = [(4, 12), (250, 750)]
TURNS_PER_CONVERSATION = 5


def workers(num_prefillers: int, num_decoders: int) -> Iterator[SimWorkerSpec]:
    """A fleet like the paper's, any size."""
    for role, count in ((Role.PREFILL, num_prefillers), (Role.DECODE, num_decoders)):
        for number in range(count):
            spec = WorkerSpec(
                worker_id=WorkerId(f"{role.value}-{number}"),
                role=role,
                tier=TierName(role.value),
                kv_capacity_tokens=308_448,
            )
            yield SimWorkerSpec(spec=spec, perf=A40_QWEN3_0_6B)


def measure(num_prefillers: int, num_decoders: int, num_turns: int, load: float) -> dict[str, Any]:
    """Play `num_turns` turns; what it took in processor time and memory."""
    rng = random.Random(7)
    deployment = Deployment(
        workers=tuple(workers(num_prefillers, num_decoders)),
        policy=make_policy(PolicyChoice(name="conserve", params={})),
        settings=DispatchSettings(max_phase_one_turns=10**9, queue_timeout_s=1e9),
    )
    tally = Tally(A40_QWEN3_0_6B)
    simulation = Simulation(deployment, tally)
    rate = load * num_decoders
    plans = with_arrivals(
        mini_swe_conversations(num_turns // TURNS_PER_CONVERSATION, rng),
        poisson_arrivals(rate, rng),
    )
    gc.collect()
    rss_before = rss_bytes()
    cpu, clock = time.process_time(), time.perf_counter()
    simulated_s = simulation.run(plans)
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    summary = tally.summary()
    assert summary.ttfet is not None
    return {
        "num_workers": num_prefillers + num_decoders,
        "num_turns": summary.num_turns,
        "turns_by_reason": summary.turns_by_reason,
        "turns_per_cpu_s": round(summary.num_turns / cpu),
        "turns_per_s": round(summary.num_turns / clock),
        "wall_s": round(clock, 2),
        "events_per_turn": round(simulation.num_events / summary.num_turns, 2),
        "simulated_s": round(simulated_s, 1),
        "grown_by_mib": round((rss_bytes() - rss_before) / 2**20, 1),
        "p95_ttfet_normalised": summary.ttfet.p95_normalised,
    }


def main() -> None:
    """Measure each fleet, print it and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200_000)
    parser.add_argument("--load", type=float, default=0.3, help="conversations/s per decoder")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    rows = [measure(p, d, options.turns, options.load) for p, d in FLEETS]
    for row in rows:
        print(
            f"{row['num_workers']:5,} workers: {row['turns_per_cpu_s']:7,} turns per CPU second,"
            f" {row['num_turns']:,} turns in {row['wall_s']} s, grown by {row['grown_by_mib']} MiB"
        )
    if not options.no_save:
        print(save("sim_speed", {"load": options.load, "rows": rows}))


if __name__ == "__main__":
    main()
