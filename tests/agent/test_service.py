"""The agent in this process's loop: its endpoints, its key, and an orderly end."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from conserve_sglang.agent.energy import EnergyPart
from conserve_sglang.agent.here import Here, part_of
from conserve_sglang.agent.meters import Metered
from conserve_sglang.agent.service import AgentService, listening_host
from conserve_sglang.core.errors import ConfigError, MeterError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.energy.meter import Device, Kind, Origin, Reading
from conserve_sglang.tiermap.load import parse_tier_map
from tests.agent.maps import a_map

KEY = "key-of-the-operator"


class SteadyMeter:
    """One package at 50 W, by a clock that the test turns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_closed = False
        self.fails = False

    def devices(self) -> Sequence[Device]:
        return (Device(device_id="cpu-0", kind=Kind.CPU_PACKAGE, name="a package"),)

    def read(self) -> Mapping[str, Reading]:
        if self.fails:
            raise MeterError("the package is gone")
        reading = Reading(
            device_id="cpu-0",
            at_s=self.now_s,
            joules=50.0 * self.now_s,
            watts=50.0,
            origin=Origin.MEASURED,
            source="a test",
        )
        return {"cpu-0": reading}

    def close(self) -> None:
        self.is_closed = True


class FailingPart:
    name = "failing"

    def __init__(self) -> None:
        self.is_stopped = False

    def routes(self) -> Sequence[Route]:
        return ()

    def health(self) -> Mapping[str, Any]:
        return {}

    async def start(self) -> None:
        raise MeterError("no permission")

    async def stop(self) -> None:
        self.is_stopped = True


def here(tmp_path: Path) -> Here:
    tier_map = parse_tier_map(a_map("0.2"), source="map.yaml", folder=tmp_path)
    return part_of(tier_map, "127.0.0.1", tmp_path)


def energy_part(at: Here, meter: SteadyMeter) -> EnergyPart:
    workers = tuple(WorkerId(worker.worker_id) for worker in at.workers)

    def open_meter(_: Here) -> Metered:
        return Metered(
            meter=meter,
            users={"cpu-0": workers},
            predictors=dict.fromkeys(workers),
            idle_w={"cpu-0": 20.0},
        )

    return EnergyPart(at, open_meter)


@asynccontextmanager
async def an_agent(
    tmp_path: Path, meter: SteadyMeter, key: str | None = None
) -> AsyncIterator[AgentService]:
    at = here(tmp_path)
    service = AgentService(at, [energy_part(at, meter)], admin_key=key)
    service.port = 0
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def get(port: int, path: str, key: str = "") -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    writer.write(
        f"GET {path} HTTP/1.1\r\nhost: a\r\n{authorization}connection: close\r\n\r\n".encode()
    )
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def test_energy_is_told_with_its_origin_and_who_uses_the_device(tmp_path: Path) -> None:
    meter = SteadyMeter()
    async with an_agent(tmp_path, meter) as agent:
        meter.now_s = 4.0
        await asyncio.sleep(0.3)  # a reading later
        status, body = await get(agent.port, "/energy")
    (device,) = body["devices"]
    assert status == 200
    assert (device["joules"], device["watts"], device["origin"]) == (200.0, 50.0, "measured")
    assert device["workers"] == ["p-0", "d-0", "d-1"]
    assert meter.is_closed


async def test_meter_that_fails_later_makes_the_agent_degraded_not_dead(tmp_path: Path) -> None:
    meter = SteadyMeter()
    async with an_agent(tmp_path, meter) as agent:
        assert (await get(agent.port, "/health"))[1]["status"] == "ok"
        meter.fails = True
        await asyncio.sleep(0.3)
        body = (await get(agent.port, "/health"))[1]
        assert body["status"] == "degraded"
        assert body["energy"]["problem"] == "the package is gone"
        meter.fails = False
        await asyncio.sleep(0.3)
        assert (await get(agent.port, "/health"))[1]["status"] == "ok"


async def test_with_a_key_nothing_but_the_status_is_told_without_it(tmp_path: Path) -> None:
    async with an_agent(tmp_path, SteadyMeter(), KEY) as agent:
        assert (await get(agent.port, "/energy"))[0] == 401
        assert (await get(agent.port, "/energy", "wrong"))[0] == 401
        assert (await get(agent.port, "/health"))[1] == {"status": "ok"}
        assert (await get(agent.port, "/energy", KEY))[0] == 200


async def test_failed_start_stops_what_was_started_and_frees_the_port(tmp_path: Path) -> None:
    at, meter, failing = here(tmp_path), SteadyMeter(), FailingPart()
    service = AgentService(at, [energy_part(at, meter), failing])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        service.port = probe.getsockname()[1]
    with pytest.raises(MeterError, match="no permission"):
        await service.start()
    assert meter.is_closed
    assert failing.is_stopped
    with socket.socket() as again:
        again.bind(("127.0.0.1", service.port))


async def test_taken_port_names_the_field(tmp_path: Path) -> None:
    at = here(tmp_path)
    service = AgentService(at, [energy_part(at, SteadyMeter())])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service.port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"energy\.agent_port: cannot listen"):
            await service.start()


def test_agents_of_other_machines_listen_on_every_interface() -> None:
    assert listening_host("127.0.0.1") == "127.0.0.1"
    assert listening_host("gpu-box") == "0.0.0.0"


def test_host_without_workers_has_no_agent(tmp_path: Path) -> None:
    tier_map = parse_tier_map(a_map(), source="map.yaml", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"its hosts are 127\.0\.0\.1"):
        part_of(tier_map, "elsewhere", tmp_path)
    without = parse_tier_map(a_map(None), source="map.yaml", folder=tmp_path)
    with pytest.raises(ConfigError, match="energy: missing"):
        part_of(without, "127.0.0.1", tmp_path)
