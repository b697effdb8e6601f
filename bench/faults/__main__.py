"""`python -m bench.faults [--real] [--only WORDS] [--save]`: the table of faults."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.faults.rows import CROWD, Row, fast_rows
from bench.faults.run import Count, Expected, run_row, undisturbed
from bench.faults.site import FastSite, Site
from bench.faults.talk import Script
from bench.faults.worker import Pace
from bench.harness import RESULTS, machine_facts, save

FAST_SCRIPT = Script(
    num_conversations=4, num_turns=3, first_chars=240, later_chars=60, max_tokens=64
)
FAST_PACE = Pace(prefill_s=0.2, transfer_s=0.2, local_prefill_s=0.2, token_s=0.02, num_words=25)
MANY_TOKENS = 100_000
_COLUMNS = {
    "turns": "turns",
    "answered": "answered once",
    "retried": "retried",
    "continued": "continued",
    "moved": "moved",
    "asked_again": "asked again",
    "error_events": "errors",
    "lost": "lost",
    "missing_tokens": "tokens missing",
    "repeated_tokens": "repeated",
    "recovery_s": "recovery s",
}


OnRow = Callable[[Count], None]


def told(count: Count) -> None:
    """A row as soon as it is played."""
    print(f"{count.victim} {count.fault}: {count.as_record()}", file=sys.stderr, flush=True)


async def run_rows(site: Site, script: Script, rows: Sequence[Row], on_row: OnRow) -> list[Count]:
    """Start a site, run rows on it one after the other, and take it down."""
    counts = []
    try:
        await site.start()
        expected: dict[Script, Expected] = {}
        for number, row in enumerate(rows):
            played = row.script or script
            if played not in expected:
                expected[played] = await undisturbed(site, played)
            counts.append(await run_row(site, played, row, expected[played], f"row-{number}"))
            on_row(counts[-1])
    finally:
        site.stop()
    return counts


def chosen(rows: Sequence[Row], only: str) -> list[Row]:
    """The rows in whose name `only` stands, or one of its parts between `|`."""
    wanted = only.split("|")
    return [row for row in rows if any(w in f"{row.victim} {row.name}" for w in wanted)]


async def run_fast(
    folder: Path, only: str, pace: Pace, script: Script, on_row: OnRow = told
) -> list[Count]:
    """All rows on fake workers; those that need small pools on a site of their own."""
    rows = chosen(fast_rows(FastSite.prefillers[0], pace), only)
    counts = []
    for capacity in sorted({row.capacity or MANY_TOKENS for row in rows}):
        own = [row for row in rows if (row.capacity or MANY_TOKENS) == capacity]
        home = folder / f"pool-{capacity}"
        home.mkdir()
        site = FastSite(home, pace, capacity=capacity)
        is_small = capacity < MANY_TOKENS
        played = replace(script, num_conversations=CROWD) if is_small else script
        counts += await run_rows(site, played, own, on_row)
    return counts


async def run_real(folder: Path, only: str, on_row: OnRow) -> list[Count]:
    """All rows on real servers; those that need small pools beside the same prefiller."""
    from bench.faults.real import SCRIPT, RealSite, real_rows, small_site
    from tests.sglang.cluster import PREFILL, Cluster

    rows = chosen(real_rows(), only)
    cluster = Cluster(folder)
    counts: list[Count] = []
    try:
        cluster.add("p0", PREFILL, is_awaited=False)
        for make, is_small in ((RealSite, False), (small_site, True)):
            own = [row for row in rows if (row.capacity is not None) == is_small]
            if own:
                counts += await run_rows(make(folder, cluster), SCRIPT, own, on_row)
    finally:
        cluster.stop()
    return counts


def with_recorded(
    record: dict[str, Any], machine: dict[str, Any], played: list[Count]
) -> list[Count]:
    """The rows just played, behind those of a record of the same revision, day and machine."""
    if record.get("machine") != machine:
        return played
    done = {(count.victim, count.fault) for count in played}
    earlier = [Count.from_record(row) for row in record["rows"]]
    return [row for row in earlier if (row.victim, row.fault) not in done] + played


def problems(counts: Sequence[Count]) -> list[str]:
    """What breaks the rule in any row; only a router's own end may make clients ask again."""
    return [
        problem
        for count in counts
        for problem in count.problems(clients_may_ask_again=count.victim == "router")
    ]


def main() -> int:
    """0 when every turn was answered once in every row."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--real", action="store_true", help="on real SGLang servers on the CPU")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="rows with these words; | between more"
    )
    parser.add_argument("--save", action="store_true", help="write bench/results/faults*.json")
    arguments = parser.parse_args()
    name = "faults_real" if arguments.real else "faults"

    def on_row(count: Count) -> None:
        told(count)
        if arguments.save and arguments.only:  # a part that is cut short keeps what it has
            keep(name, [count], in_parts=True)

    with tempfile.TemporaryDirectory() as folder:
        if arguments.real:
            counts = asyncio.run(run_real(Path(folder), arguments.only, on_row))
        else:
            run = run_fast(Path(folder), arguments.only, FAST_PACE, FAST_SCRIPT, on_row)
            counts = asyncio.run(run)
    show(counts)
    found = problems(counts)
    for problem in found:
        print(problem, file=sys.stderr)
    if arguments.save and not arguments.only:
        keep(name, counts, in_parts=False)
    return 1 if found else 0


def keep(name: str, counts: list[Count], *, in_parts: bool) -> None:
    """Write the record; a part of the rows is added to what the record has."""
    path = RESULTS / f"{name}.json"
    if in_parts and path.exists():
        counts = with_recorded(json.loads(path.read_text()), machine_facts(), counts)
    record = {"rows": [count.as_record() for count in counts], "problems": problems(counts)}
    save(name, record)


def show(counts: Sequence[Count]) -> None:
    """The table."""
    table = Table(box=None)
    table.add_column("fault")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for count in counts:
        record = count.as_record()
        table.add_row(f"{count.victim} {count.fault}", *(str(record[name]) for name in _COLUMNS))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
