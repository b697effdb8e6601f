"""Real child processes: started, kept up, and gone afterwards whatever happened."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conserve_sglang.core.errors import LaunchError
from conserve_sglang.launcher.plan import LaunchPlan, ProcessKind, ProcessSpec
from conserve_sglang.launcher.ports import is_free
from conserve_sglang.launcher.progress import Progress, Step
from conserve_sglang.launcher.ready import is_healthy
from conserve_sglang.launcher.supervise import SuperviseSettings, Supervisor

from .conftest import Ports, StandIn


class Launched:
    """A supervisor at work, and what it has reported."""

    def __init__(
        self, plan: LaunchPlan, log_dir: Path, admin_key: str | None = None, **settings: float
    ) -> None:
        self.reports: list[Progress] = []
        times = {"first_backoff_s": 0.05, "grace_s": 1.0, "probe_interval_s": 0.05, **settings}
        self.supervisor = Supervisor(
            plan,
            SuperviseSettings(log_dir=log_dir, **times),  # type: ignore[arg-type]
            self.reports.append,
            admin_key,
        )

    def saw(self, step: Step, process: str | None = None) -> bool:
        return self.count(step, process) > 0

    def count(self, step: Step, process: str | None = None) -> int:
        return sum(
            report.step is step and process in (None, report.process) for report in self.reports
        )


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), timeout_s)


def plan_of(*workers: ProcessSpec, router: ProcessSpec | None = None) -> LaunchPlan:
    control = ("127.0.0.1", router.health_port if router else 1)
    return LaunchPlan(
        workers=workers, router=router, control=control, url="http://router", notices=()
    )


async def during(launched: Launched, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run `scenario` once everything serves, then stop; the supervisor's error comes through."""
    running = asyncio.create_task(launched.supervisor.run())
    try:
        serving = asyncio.create_task(until(lambda: launched.saw(Step.SERVING)))
        await asyncio.wait({running, serving}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if not running.done():
            await scenario()
    finally:
        launched.supervisor.stop("test over")
        await running


async def nothing() -> None:
    return


def all_free(*specs: ProcessSpec) -> bool:
    return all(is_free(host, port) for spec in specs for host, port in spec.listens)


async def kill_by_request(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /die HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read()
    writer.close()


async def test_all_are_started_and_stopped_and_their_ports_free_again(
    stand_in: StandIn, free_ports: Ports, tmp_path: Path
) -> None:
    straggler = free_ports(1)[0]
    prefill = stand_in("p-0", "--straggler", str(straggler), also=(straggler,))
    decode = stand_in("d-0")
    router = stand_in("router", kind=ProcessKind.ROUTER)
    launched = Launched(plan_of(prefill, decode, router=router), tmp_path)

    async def scenario() -> None:
        await until(lambda: not is_free("127.0.0.1", straggler))
        for spec in (prefill, decode, router):
            assert await is_healthy("127.0.0.1", spec.health_port, timeout_s=2)

    await during(launched, scenario)
    assert all_free(prefill, decode, router)
    assert launched.reports[-1].step is Step.STOPPED
    assert "listening on" in (tmp_path / "p-0.log").read_text()


async def test_the_router_is_started_when_the_workers_are_ready(
    stand_in: StandIn, tmp_path: Path
) -> None:
    router = stand_in("router", kind=ProcessKind.ROUTER)
    launched = Launched(plan_of(stand_in("a"), stand_in("b"), router=router), tmp_path)
    await during(launched, nothing)
    order = [(report.step, report.process) for report in launched.reports]
    assert order.index((Step.STARTING, "router")) > order.index((Step.READY, "a"))
    assert order.index((Step.STARTING, "router")) > order.index((Step.READY, "b"))


async def test_a_worker_that_fails_to_start_ends_the_launch_with_its_last_lines(
    stand_in: StandIn, tmp_path: Path
) -> None:
    good = stand_in("good")
    launched = Launched(plan_of(good, stand_in("bad", "--fail", "no such model")), tmp_path)
    with pytest.raises(LaunchError) as caught:
        await during(launched, nothing)
    text = str(caught.value)
    assert text.startswith("bad ended with exit code 3 before it became healthy.")
    assert f"{tmp_path}/bad.log" in text
    assert "  | no such model" in text
    assert all_free(good)


async def test_a_worker_that_is_never_ready_is_stopped(stand_in: StandIn, tmp_path: Path) -> None:
    slow = stand_in("slow", "--never-ready")
    launched = Launched(plan_of(slow), tmp_path, ready_timeout_s=0.3)
    with pytest.raises(LaunchError, match=r"slow was given 0\.3 s before it became healthy"):
        await during(launched, nothing)


async def test_while_a_worker_loads_it_is_told_how_far_its_log_is(
    stand_in: StandIn, tmp_path: Path
) -> None:
    slow, quick = (
        stand_in("slow", "--never-ready", "--says", "loading weights 3/9"),
        stand_in("quick"),
    )
    launched = Launched(plan_of(slow, quick), tmp_path, ready_timeout_s=3.0, still_s=0.5)
    with pytest.raises(LaunchError):
        await during(launched, nothing)
    told = [report for report in launched.reports if report.step is Step.LOADING]
    assert {report.process for report in told} >= {"slow"}
    said = [report.message for report in told if report.process == "slow"]
    assert re.fullmatch(r"slow: not ready after [23] s; its log: loading weights 3/9", said[-1])
    assert 2 <= len(said) <= 6


async def test_a_command_that_does_not_exist_is_named(tmp_path: Path, stand_in: StandIn) -> None:
    spec = stand_in("ghost")
    broken = ProcessSpec(
        name="ghost",
        kind=spec.kind,
        argv=("/no/such/python",),
        env={},
        health_host=spec.health_host,
        health_port=spec.health_port,
        listens=spec.listens,
    )
    with pytest.raises(LaunchError, match="cannot run /no/such/python"):
        await during(Launched(plan_of(broken), tmp_path), nothing)


@pytest.mark.parametrize("key", [None, "admin"])
async def test_a_killed_worker_comes_back_and_the_router_is_told(
    stand_in: StandIn, free_ports: Ports, tmp_path: Path, key: str | None
) -> None:
    straggler = free_ports(1)[0]
    news = tmp_path / "news"
    worker = stand_in("d-0", "--straggler", str(straggler), also=(straggler,))
    asks = () if key is None else ("--key", key)
    router = stand_in("router", "--news", str(news), *asks, kind=ProcessKind.ROUTER)
    launched = Launched(plan_of(worker, router=router), tmp_path, key)

    async def scenario() -> None:
        await kill_by_request(worker.health_port)
        await until(lambda: launched.count(Step.READY, "d-0") == 2)
        await until(lambda: news.read_text().count("\n") == 2)
        assert await is_healthy("127.0.0.1", worker.health_port, timeout_s=2)

    await during(launched, scenario)
    assert news.read_text().splitlines() == [
        "/admin/workers/d-0/lost",
        "/admin/workers/d-0/up",
    ]
    died = next(report for report in launched.reports if report.step is Step.DIED)
    assert died.message == f"d-0: died with signal 9; log in {tmp_path}/d-0.log"
    assert all_free(worker, router)


async def test_a_worker_that_cannot_come_back_is_given_up_and_the_others_stay(
    stand_in: StandIn, tmp_path: Path
) -> None:
    stone = tmp_path / "stone"
    bad, good = stand_in("bad", "--fail-if", str(stone)), stand_in("good")
    launched = Launched(plan_of(bad, good), tmp_path, max_failures=3)

    async def scenario() -> None:
        stone.touch()
        await kill_by_request(bad.health_port)
        await until(lambda: launched.saw(Step.GIVEN_UP, "bad"))
        assert await is_healthy("127.0.0.1", good.health_port, timeout_s=2)

    await during(launched, scenario)
    waits = [r.message for r in launched.reports if r.step is Step.WAITING]
    assert [text.rpartition(" in ")[2] for text in waits] == ["0.05 s", "0.1 s", "0.2 s"]


async def test_the_launch_fails_when_its_last_worker_is_given_up(
    stand_in: StandIn, tmp_path: Path
) -> None:
    stone = tmp_path / "stone"
    bad = stand_in("bad", "--fail-if", str(stone))
    launched = Launched(plan_of(bad), tmp_path, max_failures=2)

    async def scenario() -> None:
        stone.touch()
        await kill_by_request(bad.health_port)
        await until(lambda: launched.saw(Step.STOPPED))

    with pytest.raises(LaunchError, match="bad was given up after 2 failed starts in a row"):
        await during(launched, scenario)


async def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(
    stand_in: StandIn, tmp_path: Path
) -> None:
    worker = stand_in("stubborn", "--ignore-term")
    launched = Launched(plan_of(worker), tmp_path, grace_s=0.3)
    await during(launched, nothing)
    assert all_free(worker)


async def test_asking_twice_does_not_wait_for_the_grace(stand_in: StandIn, tmp_path: Path) -> None:
    worker = stand_in("stubborn", "--ignore-term")
    launched = Launched(plan_of(worker), tmp_path, grace_s=60.0)
    loop = asyncio.get_running_loop()

    async def scenario() -> None:
        launched.supervisor.stop("first")
        await asyncio.sleep(0.3)

    began = loop.time()
    await during(launched, scenario)
    assert loop.time() - began < 20
    assert all_free(worker)


async def test_a_killed_keeper_takes_its_server_along(stand_in: StandIn, tmp_path: Path) -> None:
    worker = stand_in("w")
    launched = Launched(plan_of(worker), tmp_path)

    async def scenario() -> None:
        pid = next(r.pid for r in launched.reports if r.step is Step.READY)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: launched.count(Step.READY, "w") == 2)

    await during(launched, scenario)
    assert all_free(worker)


async def test_a_router_that_finds_no_usable_worker_is_not_waited_for_as_long_as_a_model(
    stand_in: StandIn, tmp_path: Path
) -> None:
    worker = stand_in("w")
    router = stand_in("router", "--never-ready", kind=ProcessKind.ROUTER)
    launched = Launched(plan_of(worker, router=router), tmp_path, router_timeout_s=0.3)
    with pytest.raises(LaunchError, match=r"router was given 0\.3 s before it became healthy"):
        await during(launched, nothing)
    assert all_free(worker)


async def test_workers_that_share_a_gpu_start_one_after_the_other(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """Each takes its part of the memory that is free when it starts; others do not wait."""
    first, second = (replace(stand_in(name), shared_gpus=(0,)) for name in ("p", "d"))
    launched = Launched(plan_of(first, second, stand_in("elsewhere")), tmp_path)
    await during(launched, nothing)
    said = [
        (report.step, report.process)
        for report in launched.reports
        if report.step in (Step.STARTING, Step.READY) and report.process != "elsewhere"
    ]
    assert said == [
        (Step.STARTING, "p"),
        (Step.READY, "p"),
        (Step.STARTING, "d"),
        (Step.READY, "d"),
    ]
    begun = [report.process for report in launched.reports if report.step is Step.STARTING]
    assert begun.index("elsewhere") < begun.index("d")
