"""What does keeping conversations cost a turn, in a file or in Redis, and how long do 100,000 take
to be restored?

Three parts, each on the whole router in one process without sockets (see `bench.router_scale`):

file     CPU time a tail turn with `router.state.path` and with `state: null`, bursts in turn; each
         turn is of another conversation, so each is one row to be written. Until all is written.
restore  a file of 100,000 conversations, all pinned: reading it, and until the router could serve.
redis    from a turn's arrival until it is written to its workers, one at a time: of a conversation
         of this replica, of the other replica, and of nobody; and without replicas. A redis-server
         of the bench's own on the loopback, so the network is not part of it.

    python -m bench.state_cost
"""

import argparse
import asyncio
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from bench.harness import save, spread
from bench.router_scale import IN_FILE, NUM_CLIENTS, Scale
from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.stats import percentile
from conserve_sglang.state import SavedConversation, SqliteStore

ROUNDS = 7
TURNS_A_ROUND = 64 * NUM_CLIENTS
NUM_RESTORED = 100_000
NUM_ASKED = 500
NUM_DECODERS = 10


async def opened(folder: Path, state: str) -> Scale:
    """A router that has what it keeps."""
    folder.mkdir(exist_ok=True)
    scale = Scale(folder, NUM_DECODERS, state)
    scale.meet()
    if scale.service.memory is not None:
        await scale.service.memory.restore()
    return scale


async def closed(scale: Scale) -> None:
    """Have it written down, and end."""
    if scale.service.memory is not None:
        await scale.service.memory.stop()
    scale.service.brain.stop()


# file


async def _burst(scale: Scale, names: list[int]) -> dict[str, float]:
    """Microseconds of CPU a turn: the loop's thread, and with the thread that writes."""
    loop_s, all_s, waits = time.thread_time(), time.process_time(), []
    for first in range(0, len(names), NUM_CLIENTS):
        began = time.perf_counter()
        await scale.play(names[first : first + NUM_CLIENTS])
        waits.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.003)  # as between turns: the timer and the writer have their time
    await asyncio.sleep(1.0)
    return {
        "loop_us": 1e6 * (time.thread_time() - loop_s) / len(names),
        "process_us": 1e6 * (time.process_time() - all_s) / len(names),
        "play_ms_p50": percentile(sorted(waits), 50),
        "play_ms_p99": percentile(sorted(waits), 99),
    }


async def measure_file(folder: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """With a file and without, in turn."""
    scales = {
        "null": await opened(folder / "null", "null"),
        "file": await opened(folder / "file", IN_FILE),
    }
    rng, names = random.Random(7), list(range(4 * TURNS_A_ROUND))
    for scale in scales.values():
        for first in range(0, len(names), NUM_CLIENTS):
            await scale.play(names[first : first + NUM_CLIENTS])
    await asyncio.sleep(2.0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in scales}
    for number in range(rounds):
        order = list(scales) if number % 2 else list(reversed(scales))
        for name in order:
            found[name].append(await _burst(scales[name], rng.sample(names, TURNS_A_ROUND)))
    for scale in scales.values():
        await closed(scale)
    pairs = list(zip(found["file"], found["null"], strict=True))
    added = {
        f"added_{key}": spread([kept[key] - none[key] for kept, none in pairs])
        for key in ("loop_us", "process_us")
    }
    rows = {
        name: {key: percentile(sorted(each[key] for each in bursts), 50) for key in bursts[0]}
        for name, bursts in found.items()
    }
    return {"turns_a_burst": TURNS_A_ROUND, "rounds": rounds, "medians": rows, **added}


# restore


async def measure_restore(folder: Path, count: int = NUM_RESTORED) -> dict[str, Any]:
    """Seconds until a file of so many conversations is known again."""
    folder.mkdir(exist_ok=True)
    store, now = SqliteStore(folder / "state.sqlite"), time.time()
    rng = random.Random(7)
    for first in range(0, count, 1000):
        batch = [_row(number, now - rng.uniform(0, 3000)) for number in range(first, first + 1000)]
        store.write(batch[: count - first], [])
    began, cpu_s = time.perf_counter(), time.process_time()
    assert len(store.load()) == count
    load_s, load_cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    store.close()
    scale = Scale(folder, NUM_DECODERS)
    scale.meet()
    memory = scale.service.memory
    assert memory is not None
    began, cpu_s = time.perf_counter(), time.process_time()
    await memory.restore()
    restore_s, restore_cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    num_pinned = sum(
        load.num_conversations for load in scale.service.brain.dispatcher.worker_loads()
    )
    await closed(scale)
    return {
        "num_conversations": count,
        "num_pinned": num_pinned,
        "file_mib": round((folder / "state.sqlite").stat().st_size / 2**20, 1),
        "read_s": round(load_s, 3),
        "read_cpu_s": round(load_cpu_s, 3),
        "read_and_restore_s": round(restore_s, 3),
        "read_and_restore_cpu_s": round(restore_cpu_s, 3),
    }


def _row(number: int, last_active_at_wall: float) -> SavedConversation:
    return SavedConversation(
        key=f"conv-{number:032x}",
        tenant="bench",
        name=b"task-%012d" % number,
        worker=f"d-{number % NUM_DECODERS}",
        incarnation="bench",
        resident_tokens=16_000,
        prompt_tokens=15_900,
        num_turns=7,
        num_kv_transfers=1,
        last_active_at_wall=last_active_at_wall,
        counted_bytes=60_000,
        counted_tokens=15_900,
    )


# redis


@contextmanager
def a_redis_server(folder: Path) -> Iterator[str]:
    """One of the bench's own on the loopback: its URL."""
    if shutil.which("redis-server") is None:
        raise ConfigError("redis-server is not installed; run scripts/redis_server.sh")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([*argv, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


async def _latency_us(scale: Scale, name: int) -> float:
    """From a turn's arrival until it is written to its workers."""
    began = time.perf_counter()
    scale.ask([name])
    while not scale.written:
        await asyncio.sleep(0)
    took = 1e6 * (time.perf_counter() - began)
    await scale.answer(1)
    await asyncio.sleep(0.002)  # it is saved, and the other replica has heard
    return took


async def measure_redis(folder: Path, count: int = NUM_ASKED) -> dict[str, Any]:
    """Two replicas, and a router without any."""
    found: dict[str, list[float]] = {}
    with a_redis_server(folder) as url:
        state = f"{{redis: {url!r}, namespace: bench}}"
        one, two = [await opened(folder / name, state) for name in ("one", "two")]
        alone = await opened(folder / "alone", IN_FILE)
        for name in range(count):
            found.setdefault("of_nobody", []).append(await _latency_us(one, name))
            found.setdefault("own", []).append(await _latency_us(one, name))
            found.setdefault("of_the_other", []).append(await _latency_us(two, name))
            found.setdefault("alone_first", []).append(await _latency_us(alone, name))
            found.setdefault("alone_tail", []).append(await _latency_us(alone, name))
        for scale in (one, two, alone):
            memory = scale.service.memory
            assert memory is not None
            assert memory.problem is None
            assert memory.num_failures == 0
            await closed(scale)
    return {"turns": count, "latency_us": {name: spread(each) for name, each in found.items()}}


def main() -> None:
    """Measure all, print and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of bursts")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record["file"] = uvloop.run(measure_file(folder, options.rounds))
        record["restore"] = uvloop.run(measure_restore(folder / "restore"))
        record["redis"] = uvloop.run(measure_redis(folder))
    for part, told in record.items():
        print(part)
        for key, value in told.items():
            print(f"  {key}: {value}")
    print(save("state_cost", record))


if __name__ == "__main__":
    main()
