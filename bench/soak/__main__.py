"""`python -m bench.soak`: two hours' worth of traffic and faults, in ten minutes."""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.faults.site import FastSite
from bench.faults.worker import Pace
from bench.harness import save
from bench.soak.clients import Crowd, Tally
from bench.soak.trouble import Trouble

WORTH_S, COMPRESSED = 7200.0, 12.0
CONVERSATIONS_PER_S = 1.0  # of the traffic that is compressed
GAP_S = 4.0
FAULT_EVERY_S = 30.0
WARM_UP = 0.2
MAX_GROWN_MIB = 16.0
_ESTABLISHED = "01"
NUM_WORKERS = len(FastSite.prefillers + FastSite.decoders)
PROBES_AT_ONCE = 2
MAX_MORE_FILES = 16  # connections to workers left out: these are kept, as a peak needed them
PACE = Pace(prefill_s=0.03, transfer_s=0.01, local_prefill_s=0.01, token_s=0.004, num_words=8)
CAPACITY_TOKENS = 40_000


class SoakSite(FastSite):
    """Conversations are forgotten soon, so that nothing is left when all are over."""

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        settings["health"]["stall_s"] = 1.0
        return settings | {"conversation_ttl_s": 8.0, "max_continuations": 5, "max_attempts": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The router while nothing is asked of it."""

    rss_mib: float
    open_files: int  # connections to workers left out
    worker_connections: int
    turns: int
    held_tokens: int
    conversations: int


def connections_to(ports: set[int]) -> int:
    """Open TCP connections of this machine to its own `ports`, counted at the asking end."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state = line.split()[:4]
        found += state == _ESTABLISHED and int(remote.rpartition(":")[2], 16) in ports
    return found


async def at_rest(site: FastSite) -> Rest:
    """Wait until all workers are well and all conversations are forgotten; then look."""
    await site.until_well()
    for _ in range(300):
        counts = await site.counts()
        if counts["conserve_router_conversations"] == 0:
            break
        await asyncio.sleep(0.1)
    kinds = ("kv_resident_tokens", "kv_reserved_tokens", "backlog_tokens")
    held = sum(
        value for name, value in counts.items()
        if name.partition("{")[0].removeprefix("conserve_worker_") in kinds
    )  # fmt: skip
    num_connections = connections_to(site.worker_ports())
    return Rest(
        rss_mib=counts["process_resident_memory_bytes"] / 2**20,
        open_files=int(counts["process_open_fds"]) - num_connections,
        worker_connections=num_connections,
        turns=int(sum(v for n, v in counts.items() if n.startswith("conserve_router_turns_total"))),
        held_tokens=int(held),
        conversations=int(counts["conserve_router_conversations"]),
    )


def problems(tally: Tally, begin: Rest, end: Rest) -> list[str]:
    """What must not be; empty if all is well."""
    found = []
    if tally.num_lost:
        found.append(f"{tally.num_lost} turns lost: {tally.examples}")
    if end.turns != tally.num_turns:
        found.append(f"clients asked {tally.num_turns} turns, the router counts {end.turns}")
    if end.held_tokens or end.conversations:
        found.append(f"the ledger still holds {end.held_tokens} tokens of {end.conversations}")
    if end.rss_mib - begin.rss_mib > MAX_GROWN_MIB:
        found.append(f"grown from {begin.rss_mib:.1f} to {end.rss_mib:.1f} MiB")
    if end.open_files - begin.open_files > MAX_MORE_FILES:
        found.append(f"open files: {begin.open_files}, then {end.open_files}")
    if end.worker_connections > NUM_WORKERS * (tally.most_at_once + PROBES_AT_ONCE):
        found.append(
            f"{end.worker_connections} connections to workers are kept, and no more than"
            f" {tally.most_at_once} turns were ever asked at once"
        )
    return found


async def soak(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Run for about so long, with faults: a warm-up, a look at rest, the rest, another look."""
    site = SoakSite(folder, PACE, capacity=CAPACITY_TOKENS)
    rate = CONVERSATIONS_PER_S * COMPRESSED
    try:
        await site.start()
        crowd = Crowd(site.port, PACE.num_words, GAP_S / COMPRESSED, seed)
        trouble = Trouble(site, FAULT_EVERY_S / COMPRESSED, seed)
        looks = []
        for share in (WARM_UP, 1 - WARM_UP):
            await asyncio.gather(crowd.come(rate, seconds * share), trouble.make(seconds * share))
            looks.append(await at_rest(site))
        begin, end = looks
        counts = await site.counts()
    finally:
        site.stop()
    tally = crowd.tally
    return {
        "seconds": seconds,
        "worth_s": seconds * COMPRESSED,
        "seed": seed,
        "outcomes": dict(tally.outcomes.most_common()),
        "told": tally.examples,
        "faults": dict(sorted(trouble.struck.items())),
        "retries": counts["conserve_router_retries_total"],
        "continuations": counts["conserve_router_continuations_total"],
        "begin": asdict(begin),
        "end": asdict(end),
        "problems": problems(tally, begin, end),
    }


def main() -> int:
    """Soak, print what came of it and save it; 1 if anything was lost or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=WORTH_S / COMPRESSED)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        record = asyncio.run(soak(Path(folder), options.seconds, options.seed))
    for name, value in record.items():
        print(f"{name:14} {value}")
    print(save("soak", record))
    return int(bool(record["problems"]))


if __name__ == "__main__":
    sys.exit(main())
