"""Energy of turns on real SGLang: what schedulers log, and what the agent makes of it.

The meter plays a recording of a device at a steady 100 W that the servers share, so every sum is
known; whose joules they are is the point.
"""

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.phase_log import Batch, Phase, Work, decode_line
from tests.sglang.cluster import LOG_DIR, Cluster, Server, free_port
from tests.sglang.routers import Router, running_router
from tests.sglang.talk import Reply, TokenTalk

pytestmark = pytest.mark.sglang

CONSERVE = {"name": "conserve", "params": {"max_local_append_tokens": 1024}}
WATTS = 100.0
HOURS = 2


@pytest.fixture(scope="module")
def recording() -> Path:
    LOG_DIR.mkdir(parents=True, exist_ok=True)
    path = LOG_DIR / "steady.csv"
    rows = (
        f"{tick / 10},g,cpu_package,A device,{WATTS * tick / 10},{WATTS},a test"
        for tick in range(HOURS * 36_000)
    )
    path.write_text("at_s,device_id,kind,name,joules,watts,source\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def agent_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def router(cluster: Cluster, recording: Path, agent_port: int) -> Iterator[Router]:
    energy = {
        "meter": "replay",
        "recording": str(recording),
        "agent_port": agent_port,
        "interval_s": 0.5,
    }
    with running_router(cluster, "energy", CONSERVE, energy=energy) as running:
        yield running


def works_of(server: Server, conversation: str) -> list[tuple[Batch, Work]]:
    entries = (decode_line(line) for line in server.phase_log.read_bytes().splitlines())
    batches = [entry for entry in entries if isinstance(entry, Batch)]
    return [(b, work) for b in batches for work in b.works if work.conversation == conversation]


def described(router: Router, name: str) -> dict[str, Any]:
    url = f"{router.url}/v1/conversations/{name}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


def told_by_agent(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/energy", timeout=10) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


def settled_to_s(told: dict[str, Any]) -> float:
    return float(told["now_s"] - told["settled_age_s"])


def counted_j(told: dict[str, Any]) -> float:
    return float(sum(counter[-1] for counter in told["counters"]))


def final(router: Router, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        body = described(router, name)
        if body["energy"] is not None and body["energy"]["is_final"]:
            return body
        assert time.monotonic() < deadline, body["energy"]
        time.sleep(0.2)


def play(router: Router, name: str, seed: int) -> list[Reply]:
    talk = TokenTalk(router.url, {"x-conversation-id": name})
    rng = random.Random(seed)
    return [talk.turn([rng.randrange(33, 127) for _ in range(n)]) for n in (900, 60, 60)]


def test_logs_have_each_turns_tokens_where_they_were_computed(
    cluster: Cluster, router: Router
) -> None:
    replies = play(router, "energy-a", 71)
    body = final(router, "energy-a")
    key = body["key"]
    prefills = works_of(cluster.servers["p0"], key)
    decoder = cluster.servers[str(body["decoder"]).removesuffix("-0")]
    local = works_of(decoder, key)
    assert sum(w.new_tokens for _, w in prefills) == replies[0].prompt_tokens
    assert {(w.phase, w.turn) for _, w in prefills} == {(Phase.PREFILL, 1)}
    for index, reply in enumerate(replies[1:], 2):
        appends = [w for _, w in local if w.turn == index and w.phase is Phase.APPEND_PREFILL]
        assert appends[0].held_tokens == reply.cached_tokens
        assert sum(w.new_tokens for w in appends) == reply.prompt_tokens - reply.cached_tokens
    for index, reply in enumerate(replies, 1):
        steps = [w for _, w in local if w.turn == index and w.phase is Phase.DECODE]
        # The first token is the prefill's.
        assert sum(w.new_tokens for w in steps) == reply.output_tokens - 1
    times = [(b.start_s, b.end_s) for b, _ in local]
    assert all(start < end for start, end in times)
    assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(times))


def test_conversation_is_told_its_energy_and_all_of_it_sums_up(router: Router) -> None:
    play(router, "energy-b", 72)
    energy = final(router, "energy-b")["energy"]
    assert set(energy["phases"]) == {"prefill", "append_prefill", "decode"}
    assert all(joules > 0 for joules in energy["phases"].values())
    assert set(energy["turns"]) == {"1", "2", "3"}
    assert sum(energy["turns"].values()) == pytest.approx(energy["joules"], rel=1e-4)
    assert (energy["origin"], energy["split"]) == ("measured", "attributed")


def test_everything_the_device_used_is_on_some_counter(router: Router, agent_port: int) -> None:
    first = told_by_agent(agent_port)
    play(router, "energy-c", 73)
    final(router, "energy-c")
    while settled_to_s(last := told_by_agent(agent_port)) < settled_to_s(first) + 8.0:
        time.sleep(0.5)
    seconds = settled_to_s(last) - settled_to_s(first)
    # The recording tells one joule count for a tenth of a second.
    expected_j = WATTS * seconds
    assert counted_j(last) - counted_j(first) == pytest.approx(
        expected_j, rel=0.01, abs=0.1 * WATTS
    )
    time.sleep(3.0)  # by now the router has asked for that
    exported_j = sum(
        value
        for key, value in router.loads().items()
        if key.startswith("conserve_router_energy_joules_total")
    )
    assert counted_j(last) <= exported_j + 1e-3
    assert exported_j <= counted_j(told_by_agent(agent_port)) + 1e-3
