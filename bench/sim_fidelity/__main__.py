"""Profiles the CPU worker, plays the demo's conversations live and in the simulator, and compares.

    python -m bench.sim_fidelity [--rounds N] [--minutes M] [--save]

Starts real SGLang servers on this machine: one prefiller and two decoders, then three mixed ones.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.demo.cluster import COMMAND, OUT
from bench.harness import save
from bench.sim_fidelity import compare, live, simulated
from bench.sim_fidelity.cluster import Site, deployments, running
from bench.sim_fidelity.compare import MEASURES, Pair
from bench.sim_fidelity.live import Run
from bench.sim_fidelity.priority import weighed_up
from bench.sim_fidelity.simulated import NOTHING, Fronts
from conserve_sglang.profiles import Profile, load_profile
from conserve_sglang.sim import perf_model_of

PROFILE = OUT / "fidelity_profile"
NUM_ALONE = 2
WARM_UP_ROUND = 900
ALONE_ROUNDS = 500


@dataclass(slots=True)
class Played:
    """What was played on one deployment."""

    name: str
    tier_maps: dict[str, Path]
    runs: list[Run] = field(default_factory=list)
    alone: list[Run] = field(default_factory=list)


def main() -> None:
    """Run it all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1.5, help="of profiling")
    parser.add_argument(
        "--nice", type=int, default=0, help="of all processes while measured; below 0 needs root"
    )
    parser.add_argument("--save", action="store_true", help="write bench/results/sim_fidelity.json")
    arguments = parser.parse_args()
    console = Console(width=120)
    played: list[Played] = []
    for number, deployment in enumerate(deployments()):
        console.print(f"starting {deployment.name} (load {os.getloadavg()[0]:.1f}) ...")
        with running(deployment) as site, weighed_up(arguments.nice):
            if number == 0:
                profile(site, arguments.minutes)
            played.append(play_rounds(deployment.name, site, arguments.rounds, console))
    found = load_profile(PROFILE.with_suffix(".yaml"))
    record = {"nice": arguments.nice, **judge(played, found, console)}
    if arguments.save:
        console.print(f"written: {save('sim_fidelity', record)}")


def profile(site: Site, minutes: float) -> None:
    """Measure the prefiller and a decoder of the running servers."""
    urls = (site.workers["prefill-0"], site.workers["decode-0"])
    tier_map = next(iter(site.tier_maps.values()))
    command = [str(COMMAND), "profile", "--tier-map", str(tier_map), "--out", str(PROFILE)]
    command += ["--minutes", str(minutes), "--meter", "none", "--max-batch", "8", "--fresh"]
    subprocess.run([*command, *(f"--attach={url}" for url in urls)], check=True)


def play_rounds(name: str, site: Site, rounds: int, console: Console) -> Played:
    """All policies in turn, each round beginning with another one; lone conversations between."""
    policies = list(site.routers)
    played = Played(name, dict(site.tier_maps))
    for policy in policies:
        live.play_alone(site, policy, WARM_UP_ROUND, 1)
    for number in range(rounds):
        for shift in range(len(policies)):
            policy = policies[(number + shift) % len(policies)]
            played.runs.append(live.play(site, policy, number))
        played.alone.append(live.play_alone(site, policies[0], ALONE_ROUNDS + number, NUM_ALONE))
        console.print(f"  round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
    return played


def judge(played: Sequence[Played], given: Profile, console: Console) -> dict[str, Any]:
    """Simulate every run with the profile alone, and with what lone turns took beside it."""
    perf = perf_model_of(given)
    record: dict[str, Any] = {
        "unit_costs": {"sources": dict(perf.sources), "errors": dict(perf.errors)},
        "fronts": {},
        "with": {},
        "runs": {each.name: [live.described(run) for run in each.runs] for each in played},
        "alone": {each.name: [live.described(run) for run in each.alone] for each in played},
    }
    fronts = {each.name: simulated.fronts_of(each.alone, perf) for each in played}
    record["fronts"] = {name: simulated.described(found) for name, found in fronts.items()}
    console.print(record["fronts"])
    for title, chosen in (
        ("the profile alone", dict.fromkeys(fronts, NOTHING)),
        ("the profile and lone turns' fronts", fronts),
    ):
        pairs = pairs_of(played, given, chosen)
        record["with"][title] = results(pairs)
        print_tables(title, pairs, console)
    return record


def pairs_of(
    played: Sequence[Played], given: Profile, fronts: dict[str, Fronts]
) -> dict[str, list[Pair]]:
    """Live runs with their simulation, by policy."""
    found: dict[str, list[Pair]] = {}
    for each in played:
        for run in each.runs:
            again = simulated.simulate(run, each.tier_maps[run.policy], given, fronts[each.name])
            found.setdefault(run.policy, []).append((run, again))
    return found


def results(pairs: dict[str, list[Pair]]) -> dict[str, Any]:
    """Errors by policy and measure, and the order of policies."""
    return {
        "policies": {
            policy: {
                "same_kind_of_placement": round(compare.same_places(found), 4),
                **{
                    name: compare.rounded(compare.errors_of(found, measure))
                    for name, measure in MEASURES.items()
                },
            }
            for policy, found in pairs.items()
        },
        "order": {
            name: compare.rounded(compare.order_of(pairs, measure))
            for name, measure in MEASURES.items()
        },
    }


def print_tables(title: str, pairs: dict[str, list[Pair]], console: Console) -> None:
    """One row a policy and measure, and the orders."""
    table = Table(title=f"simulated with {title} against live")
    for column in ("policy", "measure", "live p50 ms", "sim p50 ms", "median error", "bias",
                   "p10 .. p90", "of means", "noise"):  # fmt: skip
        table.add_column(column, justify="left" if column in {"policy", "measure"} else "right")
    for policy, found in pairs.items():
        for name, measure in MEASURES.items():
            e = compare.errors_of(found, measure)
            table.add_row(
                policy if name == "TTFT" else "",
                name,
                f"{1e3 * e.live_median_s:.1f}",
                f"{1e3 * e.simulated_median_s:.1f}",
                f"{e.median_error:.0%}",
                f"{e.bias:+.0%}",
                f"{e.p10:+.0%} .. {e.p90:+.0%}",
                f"{e.of_means:+.0%}",
                f"{e.noise:.0%}",
                end_section=name == "E2E",
            )
    console.print(table)
    for name, measure in MEASURES.items():
        order = compare.order_of(pairs, measure)
        console.print(f"{name}: live {' < '.join(order.live)}")
        console.print(
            f"  simulated {' < '.join(order.simulated)}; {order.pairs_alike} of {order.num_pairs}"
            f" pairs that differ by more than {order.margin:.0%} live are in the same order"
        )


if __name__ == "__main__":
    main()
