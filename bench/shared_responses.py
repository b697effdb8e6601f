"""How long does a follow-up wait for the response that another replica stored?

Two replicas and a Redis server on the loopback, in one process and without sockets to clients (see
`bench.router_scale`): from the question for a history until it is told, one question at a time.

alone      a router without replicas, which answers from its memory
own        of this replica, written
at_once    of the other replica, which was told to store it in the same moment: it is not in Redis
           yet, all replicas are waited for, then it is read
later      the same a moment later, so that it is there
copied     the same again: Redis is asked whether it still is, its text is here
unknown    never was; all replicas are waited for

`_100` is a history of 100 responses, `_100k` one response of 100,000 bytes; all others have 1,000.

    python -m bench.shared_responses
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.harness import save, spread
from bench.router_scale import IN_FILE, Scale
from bench.state_cost import a_redis_server, closed, opened
from conserve_sglang.core.tenant import DEFAULT_TENANT
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.responses_store import Stored

NUM_ASKED = 300
NUM_LINKS = 100
PAUSE_S = 0.005  # longer than a write takes
_TENANT = DEFAULT_TENANT.tenant_id


def _new_name() -> str:
    return "resp_" + os.urandom(16).hex()


def _store(scale: Scale, num_bytes: int = 1000, num_links: int = 1) -> str:
    """A history; the name of its last response."""
    previous = None
    for _ in range(num_links):
        name = _new_name()
        stored = Stored(b"x" * num_bytes, previous)
        scale.service.brain.keep_response(_TENANT, name, stored)
        previous = name
    return name


async def _wait_us(scale: Scale, name: str, status: int = 200) -> float:
    """From the question until the answer, which must be as expected."""
    told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    scale.service.about.ask(Question(Subject.HISTORY, _TENANT, name.encode()), told.set_result)
    answer = await told
    took = 1e6 * (time.perf_counter() - began)
    assert answer.status == status, answer.body
    await asyncio.sleep(PAUSE_S)
    return took


async def _ask_all(one: Scale, two: Scale, alone: Scale) -> dict[str, float]:
    """Each question once."""
    found = {"alone": await _wait_us(alone, _store(alone))}
    for label, num_bytes, num_links in (
        ("", 1000, 1), ("_100k", 100_000, 1), ("_100", 1000, NUM_LINKS),
    ):  # fmt: skip
        name = _store(one, num_bytes, num_links)
        found[f"at_once{label}"] = await _wait_us(two, name)
        found[f"own{label}"] = await _wait_us(one, name)
        found[f"copied{label}"] = await _wait_us(two, name)
        name = _store(one, num_bytes, num_links)
        await asyncio.sleep(2 * PAUSE_S)
        found[f"later{label}"] = await _wait_us(two, name)
    found["unknown"] = await _wait_us(two, _new_name(), 400)
    return found


async def measure(folder: Path, count: int = NUM_ASKED) -> dict[str, Any]:
    """Two replicas, and a router without any."""
    waits: dict[str, list[float]] = {}
    with a_redis_server(folder) as url:
        state = f"{{redis: {url!r}, namespace: bench, keep_responses: true}}"
        one, two = [await opened(folder / name, state) for name in ("one", "two")]
        alone = await opened(folder / "alone", IN_FILE)
        for _ in range(count):
            for name, us in (await _ask_all(one, two, alone)).items():
                waits.setdefault(name, []).append(us)
        for scale in (one, two, alone):
            memory = scale.service.memory
            assert memory is not None
            assert (memory.problem, memory.num_failures) == (None, 0)
            await closed(scale)
    return {"count": count, "wait_us": {name: spread(each) for name, each in waits.items()}}


def main() -> None:
    """Measure, print and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=NUM_ASKED, help="how often each is asked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = uvloop.run(measure(Path(folder), options.count))
    for name, told in record["wait_us"].items():
        print(f"{name:14} p50 {told['p50']:8.0f} us   p99 {told['p99']:8.0f} us")
    print(save("shared_responses", record))


if __name__ == "__main__":
    main()
