"""What do the policies give on the paper's set-up, on Claude Code sessions and on bursts?

    python -m bench.paper.run paper --seeds 5        # or claude_code, bursty
    python -m bench.paper.run bursty --seeds 1 --caps 300/200 --loads 0.5 --only collocated
    python -m bench.paper.show                       # tables and figures from what was saved

All times are modelled, from unit measurements alone. Runs are kept in `.cache/paper` by what they
depend on, so that a sweep that was cut short goes on where it was. With `--only`, `--loads` or
`--caps`, rows that are not played again stay as they were saved.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness import RESULTS, machine_facts
from bench.paper.candidates import CANDIDATES, CAPS, THREE_TIERS, Candidate, deployment
from bench.paper.measure import Alone, alone_of, play, predictor_error, slo_of
from bench.paper.workloads import WORKLOADS, Workload

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "paper"
DATA = ROOT.parent / "shared" / "data"
SOURCES = ("conserve_sglang/sim", "conserve_sglang/policy", "conserve_sglang/dispatch")
INTERVAL_CAPS = "300/300"
COMMAND = ("bench.paper.run",)


def main() -> None:
    """Play what is asked for and save its means and spreads over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--caps", nargs="*", choices=(*CAPS, THREE_TIERS), default=list(CAPS))
    parser.add_argument("--loads", nargs="*", type=float, help="of the workload's; all by default")
    parser.add_argument(
        "--only", nargs="*", choices=[each.name for each in CANDIDATES], metavar="POLICY"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public traces")
    parser.add_argument(
        "--interval",
        type=int,
        default=0,
        help="also play the two highest loads with so many decode steps between prefill steps",
    )
    options = parser.parse_args()
    workload = WORKLOADS[options.workload](options.data)
    by_itself = alone_of(workload.plans)
    if options.loads:
        workload = replace(workload, loads=tuple(options.loads))
    chosen = [each for each in CANDIDATES if not options.only or each.name in options.only]
    sweep = Sweep(workload, by_itself, range(options.seeds), chosen)
    rows = list(sweep.rows(options.caps, options.interval))
    path = RESULTS / f"paper_{workload.name}.json"
    if workload.name == "paper":
        path = RESULTS / "paper.json"
    saved = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if options.only or options.loads or set(options.caps) != set(CAPS):
        rows = merged(saved["rows"], rows)
    else:
        saved = {}
    record = {
        "bench": "paper",
        "modelled": True,
        "commands": [*saved.get("commands", []), shlex.join(["python", "-m", *COMMAND, *argv()])],
        "machine": machine_facts(),
        "workload": workload.statement,
        "num_conversations": len(workload.plans),
        "num_turns": sum(len(plan.turns) for plan in workload.plans),
        "load_1_in_conversations_per_s": workload.rate_of_load_1,
        "seeds": max(row["seeds"] for row in rows),
        "short_tokens": workload.short_tokens,
        "slo_s": slo_of(by_itself),
        "predictor_error_of_ampd_like": predictor_error(workload.plans),
    }
    path.write_text(_compact(record, rows))
    print(path)


def argv() -> list[str]:
    """The command's arguments, without where this machine keeps the data."""
    given = sys.argv[1:]
    if "--data" in given:
        at = given.index("--data")
        del given[at : at + 2]
    return given


def merged(saved: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved rows with the new ones in their place, in the order of caps, loads and candidates."""
    rows = {_place(row): row for row in (*saved, *new)}
    return [rows[place] for place in sorted(rows)]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    names = [each.name for each in CANDIDATES]
    caps = (*CAPS, THREE_TIERS).index(row["caps_w"])
    return row["interval"], caps, row["load"], names.index(row["policy"])


class Sweep:
    """Candidates over loads, caps and seeds."""

    def __init__(
        self,
        workload: Workload,
        by_itself: dict[str, Alone],
        seeds: Sequence[int],
        candidates: Sequence[Candidate] = CANDIDATES,
    ) -> None:
        self._candidates = candidates
        self._workload, self._by_itself, self._seeds = workload, by_itself, seeds
        self._slo = slo_of(by_itself)
        self._code = _fingerprint()
        CACHE.mkdir(parents=True, exist_ok=True)

    def rows(self, caps: Sequence[str], interval: int = 0) -> Iterator[dict[str, Any]]:
        """One row a candidate, caps and load; then those with decode steps between prefills."""
        for cap in caps:
            for load in self._workload.loads:
                for candidate in self._candidates:
                    yield self._row(candidate, cap, load, 0)
        for load in self._workload.loads[-2:] if interval else ():
            for candidate in self._candidates:
                yield self._row(candidate, INTERVAL_CAPS, load, interval)

    def _row(self, candidate: Candidate, cap: str, load: float, interval: int) -> dict[str, Any]:
        runs = [self._run(candidate, cap, load, interval, seed) for seed in self._seeds]
        print(self._workload.name, cap, load, interval, candidate.name, flush=True)
        head = {
            "policy": candidate.name,
            "caps_w": cap,
            "load": load,
            "interval": interval,
            "ours": candidate.is_ours,
            "simulated_only": candidate.only_simulated,
            "seeds": len(self._seeds),
        }
        return head | _over_seeds(runs)

    def _run(
        self, candidate: Candidate, cap: str, load: float, interval: int, seed: int
    ) -> dict[str, Any]:
        key = repr((self._code, self._workload.name, candidate, cap, load, interval, seed))
        path = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        figures = play(
            deployment(candidate, cap, self._slo, interval, self._workload.short_tokens),
            self._workload.timed(load, seed),
            self._by_itself,
        )
        path.write_text(json.dumps(figures))
        return figures


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure the mean; of those at p95 and of the SLO also the least and the largest."""
    merged: dict[str, Any] = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(value, dict) and name != "reasons":
            merged[name] = {
                inner: _spread(inner, [each[inner] for each in values]) for inner in value
            }
        elif isinstance(value, int | float):
            merged[name] = round(fmean(values), 4)
        elif name == "reasons":
            merged[name] = value
    return merged


def _spread(name: str, values: Sequence[float]) -> float | list[float]:
    whole = [float(f"{each(values):.4g}") for each in (fmean, min, max)]
    return whole if name.endswith(("p95", "slo")) else whole[0]


def _fingerprint() -> str:
    """Of the code that the figures depend on."""
    digest = hashlib.sha256()
    for folder in (*SOURCES, "bench/paper"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name not in {"run.py", "show.py", "figures.py", "findings.py"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compact(record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """JSON with a line for each row."""
    head = json.dumps(record, indent=1)
    body = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{head[:-2]},\n "rows": [\n{body}\n ]\n}}\n'


if __name__ == "__main__":
    main()
