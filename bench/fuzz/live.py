"""The same inputs, sent to a whole router in front of fake workers, each on its own connection."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from bench.fuzz.mutate import Mutator
from bench.fuzz.seeds import PIECES, REQUESTS
from tests.fakes.router_cluster import Cluster, a_cluster

ANSWER_S = 10.0
PATIENCE_S = 0.2
AT_ONCE = 64


async def fuzz_live(num_inputs: int, seed: int) -> dict[str, Any]:
    """Send `num_inputs`; afterwards the router must serve, and hold nothing of them.

    Raises AssertionError if it does not.
    """
    mutator = Mutator(REQUESTS, PIECES, seed)
    outcomes: Counter[str] = Counter()
    began = time.perf_counter()
    async with a_cluster(queue_timeout_s=5.0) as cluster:
        waiting = iter([mutator.next() for _ in range(num_inputs)])

        async def send_on() -> None:
            for data in waiting:
                outcomes[await _send(cluster, data)] += 1

        await asyncio.gather(*(send_on() for _ in range(AT_ONCE)))
        door = cluster.service.door
        await cluster.until(lambda: not door.executor.num_open_turns)
        assert (await cluster.chat("still there?")).status == 200
        await cluster.hang_up()
        await cluster.until(lambda: not door._clients)
        assert all(worker.num_flushes == 0 for worker in cluster.workers.values())
    assert not outcomes["hung"], f"{outcomes['hung']} connections got no answer and no end"
    return {
        "inputs": num_inputs,
        "inputs_per_s": round(num_inputs / (time.perf_counter() - began)),
        "outcomes": dict(sorted(outcomes.items())),
    }


async def _send(cluster: Cluster, data: bytes) -> str:
    """Send, wait a moment for an answer, leave, and read to the end; what the first answer was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.service.port)
    answer = b""
    try:
        writer.write(data)
        with suppress(asyncio.TimeoutError):  # most of what is not answered is not whole
            answer = await asyncio.wait_for(reader.read(4096), PATIENCE_S)
        writer.write_eof()
        answer += await asyncio.wait_for(reader.read(), ANSWER_S)
    except asyncio.TimeoutError:
        return "hung"
    except OSError:
        return answer[9:12].decode() or "cut off"
    finally:
        writer.close()
    if not answer:
        return "unfinished"
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return answer[9:12].decode()
