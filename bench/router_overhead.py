"""What does a turn cost on its way through the router, beside sglang-router, smg and none?

Fake workers (2 prefill, 4 decode) answer at once and share one core with the client; each router
has another core to itself. Candidates take turns in short bursts, so ratios of one round compare
like with like; absolute numbers are this machine's. Not measured: TLS, a real network, more than
one router core, slow clients, real engines.

    python -m bench.router_overhead [--install-rival] [--rival] [--compiled] [--streams 512]
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness import save
from bench.native.programs import PLACE, fake_workers
from bench.overhead.burst import Case, Place, burst
from bench.overhead.candidates import ALL, Candidate, Running, free_ports, install_rivals, up
from bench.overhead.check import check
from bench.overhead.report import print_tables, ratios, summary
from conserve_sglang.core.errors import ConfigError

TICK_US = 8_000  # a decode step of the streams
STREAM_TOKENS = 100
GROUP_NICE = -19
NOT_MEASURED = "TLS, a real network, more than one router core, slow clients, real engines"


def main() -> int:
    """Measure, print and save; 1 if a candidate answers wrongly, 2 if it cannot be measured."""
    options = _options()
    if options.install_rival:
        install_rivals()
    try:
        record = _measure(options)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print_tables(record)
    print(save("router_overhead", record))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a burst at 32 connections")
    parser.add_argument("--patience", type=float, default=5.0, help="wait so long for a quiet core")
    parser.add_argument("--streams", type=int, default=0, help="also this many streams at a time")
    parser.add_argument(
        "--priority",
        action="store_true",
        help="weigh bursts up against all other work (root); that slows the others meanwhile",
    )
    parser.add_argument("--only", nargs="*", default=[], help="candidates by name")
    parser.add_argument(
        "--rival", action="store_true", help="measure sglang-router and smg as well"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="measure ours as `make compiled` makes it as well"
    )
    parser.add_argument("--install-rival", action="store_true", help="install them first")
    return parser.parse_args()


def _candidates(options: argparse.Namespace) -> list[Candidate]:
    unknown = set(options.only) - {candidate.name for candidate in ALL}
    if unknown:
        raise ConfigError(f"no such candidates: {', '.join(sorted(unknown))}")
    return [
        candidate
        for candidate in ALL
        if (options.rival or candidate.rival is None)
        and (options.streams or candidate.max_continuations)
        and (options.compiled or not candidate.is_compiled)
        and (not options.only or candidate.name in options.only)
    ]


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError("two cores are needed: one for the router, one for client and workers")
    candidates, ports = _candidates(options), free_ports()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = _cases(folder, options)
        bodies = [case.body.read_text() for case in cases[:2]]
        with (
            fake_workers(ports.prefill, ports.decode, {cores[1]}, TICK_US) as workers_pid,
            up(candidates, ports, {cores[0]}, folder) as found,
        ):
            for running in found:
                check(running, ports, bodies)
            place = Place(
                router_core=cores[0],
                core=cores[1],
                workers_pid=workers_pid,
                patience_s=options.patience,
                group_nice=GROUP_NICE if options.priority else 0,
            )
            bursts = _rounds(found, cases, place, options.rounds)
    rows = summary(bursts)
    return {
        "num_rounds": options.rounds,
        "has_priority": options.priority,
        "not_measured": NOT_MEASURED,
        "candidates": {candidate.name: candidate.what for candidate in candidates},
        "rows": rows,
        "ratios": ratios(bursts),
        "bursts": bursts,
    }


def _rounds(
    found: Sequence[Running], cases: Sequence[Case], place: Place, num_rounds: int
) -> list[dict[str, Any]]:
    """Every case of every candidate once in each round; the order of candidates moves on."""
    bursts: list[dict[str, Any]] = []
    for number in range(num_rounds):
        for case in cases:
            first = number % len(found)
            for running in (*found[first:], *found[:first]):
                if case.is_stream and running.candidate.places:
                    continue  # no event of it crosses the router
                row = burst(running, case, place, seed=len(bursts) + 1)
                names = {"round": number, "case": case.name, "candidate": running.candidate.name}
                bursts.append(names | row)
                _show(bursts[-1])
    return bursts


def _show(row: dict[str, Any]) -> None:
    noisy = "  noisy" if row["is_noisy"] else ""
    sys.stderr.write(
        f"round {row['round']}  {row['case']:16}  {row['candidate']:14}"
        f"{row['requests_per_s']:10,.0f}/s  router {row['router_cpu_us']:6.1f} us"
        f"  others {row['others_cores']:.2f} cores{noisy}\n"
    )


def _cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    small = _body(folder / "small.json", 1024)
    large = _body(folder / "large.json", 32 * 1024)
    cases = [
        Case(name="1 KB x 32", body=small, connections=32, seconds=options.seconds),
        Case(name="32 KiB x 32", body=large, connections=32, seconds=options.seconds),
        Case(name="1 KB x 1", body=small, connections=1, seconds=options.seconds / 2),
    ]
    if options.streams:
        name, body = f"streams x {options.streams}", _body(folder / "s.json", 1024, is_stream=True)
        seconds = options.seconds
        case = Case(name=name, body=body, connections=options.streams, seconds=seconds)
        cases.append(replace(case, is_stream=True))
    return cases


def _body(path: Path, num_bytes: int, *, is_stream: bool = False) -> Path:
    """A chat request of this size, with the place for its mark."""
    message = {"role": "user", "content": f"mark:{PLACE} "}
    body: dict[str, Any] = {"model": "bench-model", "messages": [message]}
    body |= {"temperature": 0.0, "max_tokens": STREAM_TOKENS, "stream": is_stream}
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    short = num_bytes - len(json.dumps(body, separators=(",", ":")))
    message["content"] += ("All work and no play. " * (short // 22 + 1))[:short]
    path.write_text(json.dumps(body, separators=(",", ":")))
    return path


if __name__ == "__main__":
    sys.exit(main())
