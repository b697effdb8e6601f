"""`python -m bench.fuzz`: spoiled requests, bodies and answers by the million."""

import argparse
import asyncio
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

from bench.fuzz.live import fuzz_live
from bench.fuzz.run import Findings, fuzz
from bench.fuzz.targets import TARGETS
from bench.harness import save


def main() -> int:
    """Feed all targets, print what became of the inputs and save it; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each target")
    parser.add_argument("--live", type=int, default=20_000, help="to a router over sockets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="targets, each in its own process")
    options = parser.parse_args()

    def feed(target: str) -> Findings:
        # A process each, so that its memory is its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            findings = process.submit(fuzz, target, options.inputs, options.seed).result()
        _show(findings)
        return findings

    with ThreadPoolExecutor(options.at_once) as threads:
        records = [findings.to_record() for findings in threads.map(feed, TARGETS)]
    live = asyncio.run(fuzz_live(options.live, options.seed))
    print(f"live      {options.live:,} inputs, {live['outcomes']}")
    print(save("fuzz", {"seed": options.seed, "targets": records, "live": live}))
    return int(any(record["failures"] for record in records))


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
