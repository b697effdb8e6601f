"""Plays agent conversations through the router, beside stock PD and a single stock server.

    make demo

Starts real SGLang servers on this machine's CPU: one prefill and two decode servers behind the
router, and one stock server as the reference. Exits with 1 if an answer differs from the stock
server's, or if a conversation moved its KV more than once. Figures go to out/demo.json.
"""

import asyncio
import json
import sys
import time

from bench.demo.cluster import OUT, Cluster, running_cluster
from bench.demo.energy import ask_energy
from bench.demo.play import PlayedConversation, play_all
from bench.demo.report import faults, print_tables, to_json
from bench.demo.scenario import tickets
from bench.harness import machine_facts

Run = tuple[list[PlayedConversation], int]


def main() -> int:
    """Run the demo; 0 when everything held."""
    began = time.monotonic()
    print("Starting real SGLang on the CPU: 1 prefill, 2 decode, 1 stock reference.")
    print("That takes one to three minutes on two cores; logs are in out/ ...", flush=True)
    with running_cluster() as cluster:
        start_s = time.monotonic() - began
        print(f"up after {start_s:.0f} s; playing the conversations ...", flush=True)
        _run(cluster, cluster.stock_pd_router)  # not shown: what comes first pays for cold servers
        conserve = _run(cluster, cluster.router)
        stock_pd = _run(cluster, cluster.stock_pd_router)
        stock = _run(cluster, cluster.stock)
    print_tables(conserve, stock_pd, stock)
    found = faults(conserve, stock_pd, stock)
    record = {"machine": machine_facts(), "start_s": round(start_s, 1), "faults": found}
    record["total_s"] = round(time.monotonic() - began, 1)
    (OUT / "demo.json").write_text(
        json.dumps(record | to_json(conserve, stock_pd, stock), indent=2) + "\n"
    )
    for fault in found:
        print(f"FAULT: {fault}", file=sys.stderr)
    if not found:
        print("Every answer equals the stock server's; every conversation moved its KV once.")
    print(f"Figures: out/demo.json ({record['total_s']:.0f} s in all)")
    return 1 if found else 0


def _run(cluster: Cluster, url: str) -> Run:
    cluster.forget_everything()
    before = cluster.num_transfers()
    played = asyncio.run(play_all(url, cluster.model, tickets()))
    ask_energy(url, played)
    return played, cluster.num_transfers() - before


if __name__ == "__main__":
    raise SystemExit(main())
