"""`python -m bench.fuzz`: spoiled requests, bodies and answers by the million."""

import argparse
import asyncio
import json
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.fuzz.live import fuzz_live
from bench.fuzz.run import Findings, fuzz
from bench.fuzz.targets import TARGETS
from bench.harness import RESULTS, revision, save


def main() -> int:
    """Feed targets, print what became of the inputs and save it; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each target")
    parser.add_argument("--live", type=int, default=20_000, help="to a router over sockets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="targets, each in its own process")
    parser.add_argument(
        "--targets", nargs="*", choices=TARGETS, help="these alone; the record keeps the others"
    )
    options = parser.parse_args()
    targets = list(TARGETS) if options.targets is None else options.targets
    record = _kept() if options.targets is not None else _Record()
    num_failures = 0

    def feed(target: str) -> Findings:
        # A process each, so that its memory is its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(fuzz, target, options.inputs, options.seed).result()

    with ThreadPoolExecutor(options.at_once) as threads:
        for done in as_completed([threads.submit(feed, target) for target in targets]):
            findings = done.result()
            _show(findings)
            record.targets[findings.target] = findings.to_record() | {
                "seed": options.seed, "revision": revision(),
            }  # fmt: skip
            num_failures += findings.num_failures
            record.save()
    if options.live:
        record.live = asyncio.run(fuzz_live(options.live, options.seed)) | {
            "seed": options.seed, "revision": revision(),
        }  # fmt: skip
        print(f"live      {options.live:,} inputs, {record.live['outcomes']}")
    print(record.save())
    return int(bool(num_failures))


@dataclass
class _Record:
    """What bench/results/fuzz.json holds: the last run of each target."""

    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: dict[str, Any] = field(default_factory=dict)

    def save(self) -> Path:
        told = [self.targets[name] for name in TARGETS if name in self.targets]
        return save("fuzz", {"targets": told, "live": self.live})


def _kept() -> _Record:
    path = RESULTS / "fuzz.json"
    if not path.exists():
        return _Record()
    saved = json.loads(path.read_text())
    return _Record({told["target"]: told for told in saved["targets"]}, saved["live"])


def _show(findings: Findings) -> None:
    print(
        f"{findings.target:8}  {findings.num_inputs:,} inputs, {findings.num_failures} failures,"
        f" slowest {findings.slowest_ms:.1f} ms, grown {findings.grown_mib:+.1f} MiB,"
        f" {dict(findings.outcomes.most_common())}",
        flush=True,
    )
    for failure in findings.failures:
        print("   ", failure["why"], "\n     ", failure["input"][:300])


if __name__ == "__main__":
    sys.exit(main())
