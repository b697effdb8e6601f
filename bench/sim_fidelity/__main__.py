"""Profiles CPU workers, plays the demo's conversations live and in the simulator, and compares.

    python -m bench.sim_fidelity [--rounds N] [--minutes M] [--profile FILE] [--save]

Starts real SGLang servers on this machine: a pair to profile, then one prefiller and two decoders,
then three mixed ones. On a machine that does other work it says that what it found is no result,
and saves nothing.
"""

import argparse
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.demo.cluster import COMMAND, OUT
from bench.harness import save
from bench.sim_fidelity import live, report, sharing, simulated
from bench.sim_fidelity.cluster import Site, deployments, running, servers_env, write_maps
from bench.sim_fidelity.compare import Pair
from bench.sim_fidelity.live import Player, Run
from bench.sim_fidelity.machine import LoadWatch, weighed_up
from bench.sim_fidelity.sharing import UNSHARED, Slowdown
from bench.sim_fidelity.simulated import NOTHING, Fronts
from conserve_sglang.profiles import Profile, load_profile
from conserve_sglang.sim import perf_model_of

PROFILE = OUT / "fidelity_profile"
RECORD = OUT / "sim_fidelity.json"
NUM_ALONE = 2
WARM_UP_ROUND = 900


@dataclass(slots=True)
class Played:
    """What was played on one deployment. `alone` are the runs that fronts are told from; `lone`
    and `at_once` those that are compared."""

    name: str
    tier_maps: dict[str, Path]
    slowdown: Slowdown = UNSHARED
    alone: list[Run] = field(default_factory=list)
    lone: list[Run] = field(default_factory=list)
    at_once: list[Run] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How runs are simulated: what is taken into account beside the profile."""

    title: str
    fronts: dict[str, Fronts]
    slowdowns: dict[str, Slowdown]


def main() -> None:
    """Run it all, print the tables, and say whether they are a result."""
    arguments = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # take the servers down, too
    console, watch = Console(width=130), LoadWatch()
    if arguments.profile is None:
        console.print(f"profiling (load {os.getloadavg()[0]:.1f}) ...")
        with watch.part("profiling"):
            given = profiled(arguments.minutes, arguments.threads)
    else:
        given = load_profile(arguments.profile)
    played: list[Played] = []
    chosen = [each for each in deployments() if arguments.only in {None, each.name}]
    for deployment in chosen:
        console.print(f"starting {deployment.name} (load {os.getloadavg()[0]:.1f}) ...")
        env = servers_env(arguments.threads)
        with running(deployment, env) as site, weighed_up(arguments.nice):
            played.append(play_rounds(deployment.name, site, arguments.rounds, console, watch))
    record = {"nice": arguments.nice, "threads_of_a_server": arguments.threads}
    record |= judge(played, given, console)
    conclude(record, watch, console, is_saved=arguments.save and arguments.only is None)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.0, help="of profiling")
    parser.add_argument("--profile", type=Path, help="NAME.yaml of these workers: do not profile")
    parser.add_argument(
        "--threads", type=int, default=1, help="of each server's steps, while profiled too"
    )
    parser.add_argument(
        "--nice", type=int, default=0, help="of all processes while measured; below 0 needs root"
    )
    names = [deployment.name for deployment in deployments()]
    parser.add_argument("--only", choices=names, help="one deployment, to try it: never saved")
    parser.add_argument("--save", action="store_true", help="write bench/results/sim_fidelity.json")
    found = parser.parse_args()
    if found.rounds < 1 or found.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return found


def profiled(minutes: float, threads: int) -> Profile:
    """Measure a prefiller and a decoder that the profiler starts, with nothing beside them."""
    first = deployments()[0]
    tier_map = write_maps(first)[first.policies[0]]
    command = [str(COMMAND), "profile", "--tier-map", str(tier_map), "--out", str(PROFILE)]
    command += ["--minutes", str(minutes), "--meter", "none", "--max-batch", "8", "--fresh"]
    command += ["--log-dir", str(OUT / "logs" / "sim_fidelity")]
    subprocess.run(command, check=True, env=os.environ | servers_env(threads))
    return load_profile(PROFILE.with_suffix(".yaml"))


def play_rounds(name: str, site: Site, rounds: int, console: Console, watch: LoadWatch) -> Played:
    """All policies in turn, each round beginning with another one; lone conversations between."""
    policies = list(site.routers)
    played, player = Played(name, dict(site.tier_maps)), Player(site, watch)
    with watch.part(f"{name}, servers beside each other"):
        played.slowdown = sharing.measure(site)
    site.forget_everything()
    player.play(policies[0], WARM_UP_ROUND)
    for policy in policies:
        player.play_alone(policy, 1)
    for number in range(rounds):
        for shift in range(len(policies)):
            policy = policies[(number + shift) % len(policies)]
            played.at_once.append(player.play(policy, number))
            played.lone.append(player.play_alone(policy, 1))
        played.alone.append(player.play_alone(policies[0], NUM_ALONE))
        last = watch.parts[-1]
        console.print(
            f"  round {number + 1} of {rounds}: load {last.load_average:.1f}, others use"
            f" {last.others_cores:.2f} cores"
        )
    return played


def judge(played: Sequence[Played], given: Profile, console: Console) -> dict[str, Any]:
    """Simulate every run in every way, and compare."""
    perf = perf_model_of(given)
    fronts = {each.name: simulated.fronts_of(each.alone, perf) for each in played}
    slowdowns = {each.name: each.slowdown for each in played}
    nothing, unshared = dict.fromkeys(fronts, NOTHING), dict.fromkeys(fronts, UNSHARED)
    record: dict[str, Any] = {
        "unit_costs": {
            "sources": dict(perf.sources),
            "errors": dict(perf.errors),
            "unknown": list(perf.unknown),
            "profile_error": given.provenance.error,
        },
        "fronts": {name: simulated.described(found) for name, found in fronts.items()},
        "slowdowns": {name: asdict(found) for name, found in slowdowns.items()},
        "with": {},
    }
    for name in ("fronts", "slowdowns"):
        console.print(f"{name}: {record[name]}")
    ways = (
        Way(title="the profile", fronts=nothing, slowdowns=unshared),
        Way(title="the profile and lone turns' fronts", fronts=fronts, slowdowns=unshared),
        Way(title="the profile, fronts and shared cores", fronts=fronts, slowdowns=slowdowns),
    )
    for kind in ("lone", "at_once"):
        for way in ways[:2] if kind == "lone" else ways:
            title = f"{kind.replace('_', ' ')}: simulated with {way.title}"
            by_policy = pairs_of(played, kind, given, way)
            record["with"][title] = report.results(by_policy, perf)
            report.print_all(title, by_policy, perf, console)
    record["runs"] = {
        each.name: {
            kind: [live.described(run) for run in getattr(each, kind)]
            for kind in ("alone", "lone", "at_once")
        }
        for each in played
    }
    return record


def pairs_of(
    played: Sequence[Played], kind: str, given: Profile, way: Way
) -> dict[str, list[Pair]]:
    """Live runs of a kind with their simulation, by policy."""
    found: dict[str, list[Pair]] = {}
    for each in played:
        for run in getattr(each, kind):
            again = simulated.simulate(
                run,
                each.tier_maps[run.policy],
                given,
                way.fronts[each.name],
                way.slowdowns[each.name],
            )
            found.setdefault(run.policy, []).append((run, again))
    return found


def conclude(record: dict[str, Any], watch: LoadWatch, console: Console, *, is_saved: bool) -> None:
    """Write the record, and save it as a result if it is one. SystemExit if it is none."""
    why = watch.why_no_result()
    record |= {
        "is_result": why is None,
        "why_no_result": why,
        "others_cores": round(watch.others_cores, 3),
        "load": [asdict(part) for part in watch.parts],
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"others used {watch.others_cores:.2f} cores meanwhile; written: {RECORD}")
    if why is not None:
        raise SystemExit(f"NOT A RESULT, and not saved as one: {why}")
    if is_saved:
        console.print(f"saved: {save('sim_fidelity', record)}")


if __name__ == "__main__":
    main()
