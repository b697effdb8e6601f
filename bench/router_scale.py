"""What does the router's own work on a turn cost with more decoders and live conversations, and
how much memory do these take?

The whole router in one process, from a client's bytes to the answer's, with everything on but TLS:
keys, state in SQLite, counts, explained placements. Instead of sockets there are ends that take
what is written and answer at once, so the figure is CPU time without the kernel's part. 32 client
connections, chat bodies of 1 KB, conversations named by a header.

Then what conversations of 13 turns take, each turn's prompt with all that was said before: those
that a header names, and those that are found by their history.

    python -m bench.router_scale            # all of it
    python -m bench.router_scale --only-memory
"""

import argparse
import asyncio
import gc
import hashlib
import json
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop

from bench.harness import rss_bytes, save
from conserve_sglang.core.stats import percentile
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.service import RouterService
from conserve_sglang.router.tuning import settle_memory
from conserve_sglang.state import open_store
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import WorkerFacts
from conserve_sglang.workers.upstream import UpstreamConnection

GRID = [(10, 1_000), (100, 1_000), (1_000, 1_000), (10, 100_000), (1_000, 100_000), (10, 1_000_000)]
NUM_LONG = 100_000
NUM_CLIENTS = 32
ROUNDS = 200  # of NUM_CLIENTS turns each
NUM_TURNS = 13  # beyond 12, the explained placements of a conversation take no more
GOAL_MIB = 300
TIER_MAP = """schema_version: 1
model: {{path: bench, served_name: bench}}
tiers:
  - {{name: p, role: prefill, gpu: cpu, count: 4, base_port: 20000, bootstrap_base_port: 20100}}
  - {{name: d, role: decode, gpu: cpu, count: {num_decoders}, base_port: 21000}}
router:
  auth: {{keys_file: keys.yaml}}
  state: {state}
  overload: {{max_conversations: 2000000}}
"""
KEY = "bench"
NOBODY = b"0" * 12  # where a conversation's number goes
SAID = "A short answer."
BYTES_PER_TOKEN = 4
IN_FILE = "{path: state.sqlite}"


class Wire:
    """The other end of a connection: notes that something was written on it."""

    def __init__(self, connection: Any, written: list[Any]) -> None:
        self._connection = connection
        self._written = written

    def write(self, data: bytes) -> None:
        self._written.append(self._connection)

    def writelines(self, pieces: list[bytes]) -> None:
        self._written.append(self._connection)

    def get_extra_info(self, name: str) -> None:
        return None


class Pool(ConnectionPool):
    """Connections to a worker that is not there; always one more."""

    def __init__(self, written: list[Any]) -> None:
        super().__init__("127.0.0.1", 1)
        self._written = written

    def take_idle(self) -> UpstreamConnection:
        connection = super().take_idle()
        if connection is None:
            connection = UpstreamConnection(self._freed, self._open.discard)
            connection.connection_made(Wire(connection, self._written))  # type: ignore[arg-type]
            self._open.add(connection)
        return connection


class Scale:
    """A router with decoders and conversations."""

    def __init__(self, folder: Path, num_decoders: int, state: str = IN_FILE) -> None:
        keys = folder / "keys.yaml"
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        keys.write_text(f"tenants: [{{name: bench, keys: ['sha256:{digest}']}}]\n")
        keys.chmod(0o600)
        path = folder / "map.yaml"
        path.write_text(TIER_MAP.format(num_decoders=num_decoders, state=state))
        tier_map = load_tier_map(path)
        self.service = RouterService(tier_map, trusts_decoders=True, store=open_store(tier_map))
        self.written: list[Any] = []
        self.clients = [self._client() for _ in range(NUM_CLIENTS)]
        self.num_turns = 0
        self._bodies = [_body(turn) for turn in range(NUM_TURNS)]
        self._answers = [_answer(len(body) // BYTES_PER_TOKEN) for body in self._bodies]

    def _client(self) -> ClientConnection:
        client = self.service.door.new_client()
        assert isinstance(client, ClientConnection)
        client.connection_made(Wire(client, self.written))  # type: ignore[arg-type]
        return client

    def meet(self) -> None:
        """Every worker is up, and has room for all."""
        for worker in self.service.fleet.workers():
            worker.pool = Pool(self.written)
            facts = WorkerFacts(
                mode=worker.plan.role.value,
                kv_capacity_tokens=1 << 40,
                serves_local_turns=True,
                served_name="bench",
                version="0.5.23",
                incarnation="bench",
            )
            self.service.fleet.met(worker, facts)
            worker.was_probed.set()

    def ask(self, names: list[int], turn: int = 0, *, named: bool = True) -> None:
        """This turn (0, 1...) of each of these conversations comes in, all at once."""
        body, header = self._bodies[turn], "x-conversation-id: task-{}\r\n" if named else ""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\n"
            f"accept: */*\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"{header}content-length: {len(body)}\r\n\r\n"
        )
        for number, client in zip(names, self.clients, strict=False):
            task = f"{number:012}"
            said = body if named else body.replace(NOBODY, task.encode(), 1)
            client.data_received(head.format(task).encode() + said)

    async def play(self, names: list[int], turn: int = 0, *, named: bool = True) -> None:
        """A turn of each of these conversations, placed at once, and answered."""
        self.ask(names, turn, named=named)
        await asyncio.sleep(0)  # what was gathered in this iteration is written
        await self.answer(len(names), turn)

    async def answer(self, num_turns: int, turn: int = 0) -> None:
        """Answer the turns that were written to workers."""
        asked = self.written[:]
        self.written.clear()
        for connection in asked:
            connection.data_received(self._answers[turn])
        await asyncio.sleep(0)
        assert len(self.written) == num_turns, "not every turn was answered"
        self.written.clear()
        self.num_turns += num_turns


def _body(turn: int) -> bytes:
    """What a client sends with its turn 0, 1...: all that was said before, and a little more."""
    task = f"Task {NOBODY.decode()}. " + "All work and no play. " * 40
    messages = [{"role": "user", "content": task}]
    for _ in range(turn):
        messages.append({"role": "assistant", "content": SAID})
        messages.append({"role": "user", "content": "And so on, if you please."})
    return json.dumps({"model": "bench", "messages": messages}).encode()


def _answer(prompt_tokens: int) -> bytes:
    message = {"role": "assistant", "content": SAID, "tool_calls": None}
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + 16,
        "completion_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": prompt_tokens - 10},
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {"id": "0" * 16, "object": "chat.completion", "created": 1, "model": "bench"}
    raw = json.dumps(body | {"choices": [choice], "usage": usage}, separators=(",", ":")).encode()
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    return head.format(len(raw)).encode() + raw


async def _measure(folder: Path, num_decoders: int, num_conversations: int) -> dict[str, Any]:
    scale = Scale(folder, num_decoders)
    scale.meet()
    memory = scale.service.memory
    assert memory is not None
    await memory.restore()  # from now on changes are written behind
    settle_memory()
    rss_before = rss_bytes() / 2**20
    for first in range(0, num_conversations, NUM_CLIENTS):
        await scale.play(list(range(first, min(first + NUM_CLIENTS, num_conversations))))
    await asyncio.sleep(1.0)  # the last ones are written
    gc.collect()
    rss = rss_bytes() / 2**20
    rng = random.Random(7)
    tail = [
        await _timed(scale, rng.sample(range(num_conversations), NUM_CLIENTS))
        for _ in range(ROUNDS)
    ]
    start = num_conversations
    first_turns = [
        await _timed(scale, list(range(at, at + NUM_CLIENTS)))
        for at in range(start, start + ROUNDS * NUM_CLIENTS, NUM_CLIENTS)
    ]
    live = scale.service.brain.dispatcher.num_conversations
    await memory.stop()
    return {
        "num_decoders": num_decoders,
        "num_conversations": num_conversations,
        "num_live_at_the_end": live,
        "tail_turn_us": _spread(tail),
        "first_turn_us": _spread(first_turns),
        "rss_mib": round(rss, 1),
        "bytes_per_conversation": round((rss - rss_before) * 2**20 / num_conversations),
    }


async def _measure_memory(folder: Path, num_conversations: int, named: bool) -> dict[str, Any]:
    """Memory while each conversation has one more turn than before, all of them in turn."""
    scale = Scale(folder, 10)
    scale.meet()
    memory = scale.service.memory
    assert memory is not None
    await memory.restore()
    settle_memory()
    before = rss_bytes() / 2**20
    rss_mib = []
    for turn in range(NUM_TURNS):
        for first in range(0, num_conversations, NUM_CLIENTS):
            names = list(range(first, min(first + NUM_CLIENTS, num_conversations)))
            await scale.play(names, turn, named=named)
        await asyncio.sleep(0.5)  # the last ones are written
        gc.collect()
        rss_mib.append(round(rss_bytes() / 2**20, 1))
    dispatcher = scale.service.brain.dispatcher
    assert dispatcher.num_conversations == num_conversations, "a turn was taken for another's"
    await memory.stop()
    return {
        "identified_by": "name" if named else "history",
        "num_conversations": num_conversations,
        "num_turns": NUM_TURNS,
        "rss_mib_after_each_turn": rss_mib,
        "rss_mib_at_start": round(before, 1),
        "bytes_per_conversation": round((max(rss_mib) - before) * 2**20 / num_conversations),
    }


async def _timed(scale: Scale, names: list[int]) -> float:
    """Microseconds of this thread's CPU a turn."""
    begin = time.thread_time()
    await scale.play(names)
    return 1e6 * (time.thread_time() - begin) / len(names)


def _spread(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"min": ordered[0], "p50": percentile(ordered, 50), "p90": percentile(ordered, 90)}


def measure(num_decoders: int, num_conversations: int) -> dict[str, Any]:
    """One row, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(Path(folder), num_decoders, num_conversations))


def measure_memory(num_conversations: int, named: bool) -> dict[str, Any]:
    """One row of long conversations, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure_memory(Path(folder), num_conversations, named))


def main() -> None:
    """Measure the grid and the long conversations, print both and save them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=1_000_000, help="most conversations")
    parser.add_argument("--only-memory", action="store_true", help="long conversations alone")
    options = parser.parse_args()
    facts = {"num_clients": NUM_CLIENTS, "goal_mib_at_100000": GOAL_MIB}
    if not options.only_memory:
        print(save("router_scale", facts | {"rows": _measure_grid(options.largest)}))
    rows = _measure_long(min(options.largest, NUM_LONG))
    print(save("router_memory", facts | {"rows": rows}))


def _measure_grid(largest: int) -> list[dict[str, Any]]:
    rows = []
    print("decoders  conversations  tail us min/p50  first us min/p50  RSS MiB  bytes/conv")
    for num_decoders, num_conversations in GRID:
        if num_conversations > largest:
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row = process.submit(measure, num_decoders, num_conversations).result()
        rows.append(row)
        tail, first = row["tail_turn_us"], row["first_turn_us"]
        print(
            f"{num_decoders:8,}  {num_conversations:13,}  {tail['min']:7.1f} {tail['p50']:7.1f}"
            f"   {first['min']:7.1f} {first['p50']:7.1f}  {row['rss_mib']:7.1f}"
            f"  {row['bytes_per_conversation']:10,}"
        )
    return rows


def _measure_long(num_conversations: int) -> list[dict[str, Any]]:
    print(f"conversations  known by  RSS MiB after turn 1, {NUM_TURNS}, most  bytes/conv")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as each:
        found = [each.submit(measure_memory, num_conversations, named) for named in (True, False)]
        rows = [row.result() for row in found]
    for row in rows:
        rss = row["rss_mib_after_each_turn"]
        print(
            f"{num_conversations:13,}  {row['identified_by']:>8}  {rss[0]:7.1f} {rss[-1]:7.1f}"
            f" {max(rss):7.1f}  {row['bytes_per_conversation']:10,}"
        )
    return rows


if __name__ == "__main__":
    main()
