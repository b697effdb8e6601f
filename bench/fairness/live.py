"""The scenario through the real router, in a process of its own, on fake workers in real time."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.fairness.scenario import BURSTY, STEADY, Played, Scenario, summary
from bench.fairness.workers import TimedWorker
from conserve_sglang.core.ids import TenantId
from conserve_sglang.tiermap.keys import new_key
from conserve_sglang.workload import ConversationPlan
from tests.fakes.sglang_worker import Rendezvous

UNBOUNDED = 10**9
START_UP_S = 30.0
OVERLOADS: dict[str, tuple[bool, dict[str, Any]]] = {
    "alone": (False, {}),
    "burst, FIFO": (True, {"is_fair": False, "max_prefill_backlog_tokens": UNBOUNDED}),
    "burst, fair": (True, {}),
}


async def play(scenario: Scenario, speed: float) -> dict[str, dict[str, Any]]:
    """B's and A's latencies in each mode."""
    rows: dict[str, dict[str, Any]] = {}
    for mode, (has_burst, overload) in OVERLOADS.items():
        async with _router(scenario, overload, speed) as (port, keys):
            clients = _Clients(port, keys, speed)
            played = await clients.play(scenario.plans(has_burst=has_burst))
        rows[mode] = {"b": summary(played, STEADY), "a": summary(played, BURSTY)}
        sys.stderr.write(f"{mode}: {rows[mode]['b']}\n")
    return rows


class _Clients:
    """Plays conversations: each turn on a connection of its own, the next one after its gap."""

    def __init__(self, port: int, keys: dict[TenantId, str], speed: float) -> None:
        self._port = port
        self._keys = keys
        self._speed = speed
        self._loop = asyncio.get_running_loop()

    async def play(self, plans: list[ConversationPlan]) -> list[Played]:
        begin_s = self._loop.time()
        return await asyncio.gather(*(self._conversation(plan, begin_s) for plan in plans))

    async def _conversation(self, plan: ConversationPlan, begin_s: float) -> Played:
        arrives_at_s = begin_s + plan.arrived_at_s / self._speed
        await asyncio.sleep(arrives_at_s - self._loop.time())
        arrived_at_s = self._loop.time()
        times = []
        for number, turn in enumerate(plan.turns):
            await asyncio.sleep(turn.gap_s / self._speed)
            is_last = number + 1 == len(plan.turns)
            at_s = await self._turn(plan, turn.input_tokens, turn.output_tokens, is_last)
            if at_s is None:
                return Played(tenant=plan.tenant, ttfet_s=0, first_ttft_s=0, is_answered=False)
            times.append((at_s - arrived_at_s) * self._speed)
        return Played(tenant=plan.tenant, ttfet_s=times[-1], first_ttft_s=times[0])

    async def _turn(
        self, plan: ConversationPlan, num_tokens: int, num_output: int, is_last: bool
    ) -> float | None:
        """When the first token came; None if the turn was refused."""
        ids = b"7," * (num_tokens - 1) + b"7"
        body = b'{"input_ids":[%b],"stream":true,"sampling_params":{"max_new_tokens":%d}}'
        body %= (ids, num_output)
        lines = [
            "POST /generate HTTP/1.1",
            "host: x",
            f"authorization: Bearer {self._keys[plan.tenant]}",
            f"x-conversation-id: {plan.conversation_id}",
            f"content-length: {len(body)}",
            *(["x-conversation-end: 1"] if is_last else []),
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return None
            await reader.readuntil(b"data: ")
            first_at_s = self._loop.time()
            await reader.readuntil(b"0\r\n\r\n")
            return first_at_s
        finally:
            writer.close()


@asynccontextmanager
async def _router(
    scenario: Scenario, overload: dict[str, Any], speed: float
) -> AsyncIterator[tuple[int, dict[TenantId, str]]]:
    rendezvous = Rendezvous()
    fleet = ["prefill"] * scenario.num_prefillers + ["decode"] * scenario.num_decoders
    workers = [TimedWorker(mode, rendezvous, scenario.kv_capacity_tokens, speed) for mode in fleet]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for worker in workers:
            await stack.enter_async_context(worker.serve())
        keys = {tenant: new_key(folder / "keys.yaml", tenant) for tenant in (STEADY, BURSTY)}
        port, control_port = await _free_port(), await _free_port()
        tier_map = _tier_map(workers, port, control_port, overload, speed)
        (folder / "map.yaml").write_text(yaml.safe_dump(tier_map))
        command = [
            *(sys.executable, "-m", "conserve_sglang.router", "--tier-map"),
            *(str(folder / "map.yaml"), "--log-level", "warning", "--no-state"),
        ]
        root = str(Path(__file__).parents[2])
        router = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": root})
        stack.callback(router.wait)
        stack.callback(router.terminate)
        await _until_ready(port, len(workers))
        yield port, keys


def _tier_map(
    workers: list[TimedWorker],
    port: int,
    control_port: int,
    overload: dict[str, Any],
    speed: float,
) -> dict[str, Any]:
    tiers = []
    for number, worker in enumerate(workers):
        tier = {"name": f"w{number}", "role": worker.mode, "gpu": "cpu", "base_port": worker.port}
        if worker.mode == "prefill":
            tier["bootstrap_base_port"] = 20_000 + number  # only named, nothing connects to it
        tiers.append(tier)
    return {
        "schema_version": 1,
        "model": {"path": "tiny"},
        "tiers": tiers,
        "router": {
            "port": port,
            "control_port": control_port,
            "queue_timeout_s": 600.0,
            "reclaim_idle_s": 15.0 / speed,
            "overload": {"max_phase_one_turns": 10_000, **overload},
            "auth": {"keys_file": "keys.yaml"},
        },
    }


async def _until_ready(port: int, num_workers: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_UP_S
    while loop.time() < deadline:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if answer.count(b'"state":"up"') == num_workers or b'"status":"ok"' in answer:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the router did not meet its workers")


async def _free_port() -> int:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
