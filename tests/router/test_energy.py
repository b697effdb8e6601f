"""What the router makes of what agents tell: conversations, counters, power."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conserve_sglang.core.tier import EnergySettings
from tests.fakes.agent import FakeAgent, an_agent
from tests.fakes.router_cluster import Cluster, a_cluster

IDLE = ["d0", "d0", "idle", "measured", "own", 40.0]
DECODE = ["d0", "d0", "decode", "measured", "own", 60.0]
MODES = {"p0": "prefill", "d0": "decode"}


@asynccontextmanager
async def a_site(
    settled_age_s: float = 0.0, **settings: Any
) -> AsyncIterator[tuple[Cluster, FakeAgent]]:
    async with (
        an_agent(settled_age_s) as agent,
        a_cluster(MODES, energy=EnergySettings(agent_port=agent.port), **settings) as cluster,
    ):
        yield cluster, agent


async def described(cluster: Cluster) -> Any:
    assert cluster.service.energy is not None
    await cluster.service.energy.ask()
    return (await cluster.request("GET", "/v1/conversations/c")).json()


async def scraped(cluster: Cluster) -> dict[str, float]:
    assert cluster.service.energy is not None
    await cluster.service.energy.ask()
    port = cluster.service.control_port
    text = (await cluster.request("GET", "/metrics", port)).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def test_conversation_has_its_energy_by_phase_and_turn() -> None:
    async with a_site() as (cluster, agent):
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "prefill", 30.0)
        agent.bill(key, 1, "decode", 12.0)
        agent.bill(key, 2, "append_prefill", 3.0)
        agent.bill("conv-of-nobody", 1, "decode", 99.0)
        energy = (await described(cluster))["energy"]
        assert energy["joules"] == 45.0
        assert energy["phases"] == {"prefill": 30.0, "decode": 12.0, "append_prefill": 3.0}
        assert energy["turns"] == {"1": 42.0, "2": 3.0}
        assert (energy["origin"], energy["split"]) == ("measured", "own")


async def test_no_settling_is_counted_twice() -> None:
    async with a_site() as (cluster, agent):
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "decode", 12.0)
        await described(cluster)
        assert (await described(cluster))["energy"]["joules"] == 12.0


async def test_energy_is_final_once_the_books_are_past_the_answer() -> None:
    async with a_site() as (cluster, agent):
        agent.settled_age_s = 3600.0
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "decode", 12.0)
        assert (await described(cluster))["energy"]["is_final"] is False
        agent.settled_age_s = 0.0
        assert (await described(cluster))["energy"]["is_final"] is True


async def test_what_an_agent_forgot_makes_the_conversations_of_then_incomplete() -> None:
    async with a_site() as (cluster, agent):
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "decode", 12.0)
        assert (await described(cluster))["energy"]["is_complete"] is True
        await cluster.chat("hello " * 100, "the answer", "more")
        agent.more = {"has_forgotten": True, "late_s": 2.5, "lost_files": 3, "outside_profile": 4}
        agent.more["refused_windows"] = 6
        agent.more["unmeasured"] = ["d0"]
        seen = await scraped(cluster)
        agent.more = {}
        assert (await described(cluster))["energy"]["is_complete"] is False
        at = '{host="127.0.0.1"}'
        assert seen["conserve_agent_gaps_total" + at] == 1
        assert seen["conserve_agent_late_seconds_total" + at] == 2.5
        assert seen["conserve_agent_refused_windows_total" + at] == 6
        assert seen["conserve_agent_lost_log_files_total" + at] == 3
        assert seen["conserve_agent_outside_profile_total" + at] == 4
        assert seen["conserve_agent_unmeasured_workers" + at] == 1


async def test_conversation_whose_first_turns_nobody_told_is_incomplete() -> None:
    async with a_site() as (cluster, agent):
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 2, "decode", 12.0)
        assert (await described(cluster))["energy"]["is_complete"] is False


async def test_one_modelled_joule_makes_the_sum_modelled() -> None:
    async with a_site() as (cluster, agent):
        await cluster.chat("hello " * 100)
        key = (await described(cluster))["key"]
        agent.bill(key, 1, "decode", 12.0)
        agent.bill(key, 1, "decode", 1.0, origin="modelled", split="attributed")
        energy = (await described(cluster))["energy"]
        assert (energy["origin"], energy["split"]) == ("modelled", "attributed")


async def test_counters_are_exported_by_worker_tier_phase_and_origin() -> None:
    async with a_site() as (cluster, agent):
        agent.counters = [IDLE, DECODE]
        seen = await scraped(cluster)
        labels = 'origin="measured",phase="{}",split="own",tier="d0",worker="d0"'
        name = "conserve_router_energy_joules_total"
        assert seen[f"{name}{{{labels.format('idle')}}}"] == 40.0
        assert seen[f"{name}{{{labels.format('decode')}}}"] == 60.0
        assert seen['conserve_agent_up{host="127.0.0.1"}'] == 1
        shown = 'device="gpu-0",host="127.0.0.1",kind="gpu",origin="measured"'
        assert seen[f"conserve_device_power_watts{{{shown}}}"] == 70.0


async def test_agent_that_began_anew_takes_nothing_back() -> None:
    async with a_site() as (cluster, agent):
        agent.counters = [IDLE, DECODE]
        await scraped(cluster)
        agent.incarnation, agent.billed, agent.counters = "second", [], [[*DECODE[:5], 5.0]]
        await scraped(cluster)
        seen = await scraped(cluster)
        total = [v for k, v in seen.items() if k.startswith("conserve_router_energy_joules_total")]
        assert sorted(total) == [40.0, 65.0]


async def test_power_of_a_worker_is_what_its_counters_grew_by() -> None:
    async with a_site(settled_age_s=100.0) as (cluster, agent):
        agent.counters = [IDLE, DECODE]
        await scraped(cluster)
        agent.counters, agent.settled_age_s = [[*IDLE[:5], 140.0], [*DECODE[:5], 960.0]], 90.0
        seen = await scraped(cluster)
        (watts,) = (v for k, v in seen.items() if k.startswith("conserve_worker_power_watts"))
        assert watts == pytest.approx(100.0, rel=0.02)


async def test_agent_that_is_gone_is_told_and_does_not_stop_turns() -> None:
    async with a_site() as (cluster, agent):
        await scraped(cluster)
        agent.status = 500
        assert (await scraped(cluster))['conserve_agent_up{host="127.0.0.1"}'] == 0
        assert (await cluster.chat("hello " * 100)).status == 200


async def test_agents_are_asked_with_the_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_KEY", "key-of-the-operator")
    async with a_site(admin_key_env="ADMIN_KEY") as (cluster, agent):
        assert cluster.service.energy is not None
        await cluster.service.energy.ask()
        assert set(agent.keys) == {"Bearer key-of-the-operator"}


async def test_where_energy_is_not_read_nothing_of_it_is_told() -> None:
    async with a_cluster(MODES) as cluster:
        await cluster.chat("hello " * 100)
        body = (await cluster.request("GET", "/v1/conversations/c")).json()
        assert "energy" not in body
