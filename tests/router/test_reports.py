"""The workers' own account of their load."""

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import ObserveSettings
from tests.fakes.router_cluster import a_cluster

OFTEN = ObserveSettings(report_interval_s=0.05)


async def test_decoders_tell_what_they_hold_and_others_what_runs() -> None:
    async with a_cluster(observe=OFTEN) as cluster:
        await cluster.chat("hello there")
        reports = cluster.service.reports
        await cluster.until(lambda: sum(r.held_tokens or 0 for r in reports.latest().values()) > 0)
        latest = reports.latest()
        held = {name: latest[WorkerId(name)].held_tokens for name in ("p0", "d0", "d1")}
        resident = sum(len(prompt) for prompt in cluster["d0"].resident.values())
        assert held == {"p0": None, "d0": resident, "d1": 0}
        assert latest[WorkerId("p0")].num_running == 2
        assert latest[WorkerId("p0")].num_waiting == 1


async def test_a_worker_that_is_gone_has_no_report() -> None:
    async with a_cluster(observe=OFTEN) as cluster:
        reports = cluster.service.reports
        await cluster.until(lambda: len(reports.latest()) == 3)
        await cluster["d1"].stop()
        await cluster.until(lambda: WorkerId("d1") not in reports.latest())


async def test_nobody_is_asked_when_the_interval_is_zero() -> None:
    async with a_cluster(observe=ObserveSettings(report_interval_s=0)) as cluster:
        await cluster.chat("hello")
        assert "/v1/loads?include=core" not in cluster["d0"].probes
