"""The agents of a deployment's hosts, as the power controller talks to them once a second."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.energy.holding import KEY_VARIABLE
from conserve_sglang.workers.access import WorkerAccess
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool

TIMEOUT_S = 0.8  # less than a period: an agent that is late is not waited for
LEASE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one device drew between its last two readings; `age_s` is that of the later one."""

    device_id: str
    workers: tuple[str, ...]
    watts: float
    joules: float
    age_s: float
    is_measured: bool
    is_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCap:
    """A GPU in the hands of its host's holder; watts."""

    cap_w: float
    base_w: float
    least_w: float
    is_foreign: bool


class AgentLink:
    """One agent. Every request has a short time; what did not come is told as None."""

    def __init__(self, host: str, port: int, admin_key: str | None) -> None:
        self.host = host
        self._pool = ConnectionPool(host, port, access=WorkerAccess(api_key=admin_key))
        self._before: dict[str, tuple[float, float]] = {}
        self._watts: dict[str, float] = {}
        self.problem: str | None = None

    async def energy(self) -> list[Drawn] | None:
        """What its devices drew since the last call; the first call has their power now."""
        told = await self._ask("GET", "/energy?fresh=1&since=999999999999")
        if told is None or told.get("problem") is not None:
            self.problem = self.problem or str(told and told.get("problem"))
            return None
        return [self._drawn(device, told["now_s"]) for device in told["devices"]]

    async def caps(self, wanted: Mapping[str, float], why: str) -> dict[str, HeldCap] | None:
        """Have these limits set, for `LEASE_S`; every GPU in hand as it is then."""
        body = json.dumps({"caps": dict(wanted), "lease_s": LEASE_S, "why": why}).encode()
        told = await self._ask("POST", "/caps", body)
        if told is None:
            return None
        return {
            uuid: HeldCap(
                cap_w=gpu["cap_w"],
                base_w=gpu["base_w"],
                least_w=gpu["least_w"],
                is_foreign=gpu["is_foreign"],
            )
            for uuid, gpu in told.get("gpus", {}).items()
            if gpu["cap_w"] is not None and gpu["least_w"] is not None
        }

    def close(self) -> None:
        """Hang up."""
        self._pool.close()

    # inside

    def _drawn(self, device: Mapping[str, Any], now_s: float) -> Drawn:
        name, at_s, joules = device["id"], device["at_s"], device["joules"]
        before_s, before_j = self._before.get(name, (at_s, joules))
        self._before[name] = (at_s, joules)
        if at_s > before_s:
            self._watts[name] = (joules - before_j) / (at_s - before_s)
        return Drawn(
            device_id=name,
            workers=tuple(device["workers"]),
            watts=self._watts.get(name, device["watts"] or 0.0),
            joules=joules - before_j,
            age_s=max(0.0, now_s - at_s),
            is_measured=device["origin"] == "measured",
            is_gpu=device["kind"] == "gpu",
        )

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            status, answer = await fetch(self._pool, method, path, body=body, timeout_s=TIMEOUT_S)
            told = json.loads(answer)
        except (WorkerError, ValueError) as error:
            self.problem = f"the agent of {self.host} did not answer: {error}"
            return None
        self.problem = None
        if status >= 400:
            said = told.get("error") if isinstance(told, dict) else told
            self.problem = f"the agent of {self.host}: {said}"
            return told if isinstance(told, dict) and "gpus" in told else None
        return told


def links(tier_map: TierMap, admin_key: str | None) -> tuple[AgentLink, ...]:
    """A link to the agent of each host with workers; with the admin key, or the launch's own."""
    assert tier_map.energy is not None
    key = admin_key or os.environ.get(KEY_VARIABLE)
    hosts = dict.fromkeys(worker.host for worker in tier_map.workers)
    return tuple(AgentLink(host, tier_map.energy.agent_port, key) for host in hosts)


async def ask_all(
    agents: tuple[AgentLink, ...], wanted: Mapping[str, Mapping[str, float]], why: str
) -> list[tuple[list[Drawn] | None, dict[str, HeldCap] | None]]:
    """Every agent's energy and caps at once; `wanted` are the limits to go on with, by host."""
    energies = asyncio.gather(*(agent.energy() for agent in agents))
    caps = asyncio.gather(*(agent.caps(wanted.get(agent.host, {}), why) for agent in agents))
    return list(zip(await energies, await caps, strict=True))
