"""Starts the processes of a plan, keeps them up, and takes all of them down at the end."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import LaunchError
from conserve_sglang.launcher.plan import LaunchPlan, ProcessKind, ProcessSpec, backoff_s
from conserve_sglang.launcher.ports import wait_free
from conserve_sglang.launcher.process import Child, Lifeline, last_lines
from conserve_sglang.launcher.progress import Progress, Report, Step
from conserve_sglang.launcher.ready import is_healthy, tell_router, wait_healthy

logger = logging.getLogger(__name__)

_SHOWN = 200  # characters of a line of a log


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperviseSettings:
    """Times of a supervision, in seconds; `max_failures` in a row end a process for good.

    The router is healthy once every role has a worker it can use. It has its own, shorter time:
    what keeps it waiting is not the loading of a model but a worker it refuses.
    """

    log_dir: Path
    ready_timeout_s: float = 900.0
    router_timeout_s: float = 60.0
    probe_interval_s: float = 0.25
    probe_timeout_s: float = 10.0
    still_s: float = 20.0  # how often it is told that a process is not healthy yet
    grace_s: float = 20.0  # SGLang looks for a SIGTERM every 5 s, then frees what it holds
    first_backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    stable_after_s: float = 120.0
    max_failures: int = 8
    ports_timeout_s: float = 15.0
    tail_lines: int = 20


class Supervisor:
    """Owns the child processes of one launch."""

    def __init__(
        self,
        plan: LaunchPlan,
        settings: SuperviseSettings,
        report: Report,
        admin_key: str | None = None,
    ) -> None:
        self._plan = plan
        self._admin_key = admin_key
        self._settings = settings
        self._report = report
        self._children: dict[str, Child] = {}
        self._given_up: set[str] = set()
        self._lifeline = Lifeline()
        self._starting: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stop_asked = asyncio.Event()

    def stop(self, why: str) -> None:
        """Ask `run` to take everything down; asked again, it kills instead of waiting, what may say
        a last word a moment later."""
        if self._stop_asked.is_set():
            for child in self._children.values():
                child.hurry()
            return
        self._report(Progress(step=Step.STOPPING, message=f"{why}: stopping all processes"))
        self._stop_asked.set()

    async def run(self) -> None:
        """Start all, keep them up until `stop`; LaunchError when that is not possible."""
        work = asyncio.create_task(self._serve())
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            await self._stop_all()
            self._lifeline.cut()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await _all(self._bring_up(spec) for spec in self._plan.agents)
        await _all(self._bring_up(spec) for spec in self._plan.workers)
        if self._plan.router is not None:
            await self._bring_up(self._plan.router)
        where = self._plan.url if self._plan.router is not None else "no router here"
        self._report(
            Progress(step=Step.SERVING, message=f"serving: {where}", after_s=loop.time() - began)
        )
        await _all(self._keep_up(spec) for spec in self._plan.processes)

    async def _bring_up(self, spec: ProcessSpec) -> None:
        """Start a process and wait until it is healthy, alone on its shared GPUs meanwhile."""
        async with contextlib.AsyncExitStack() as alone:
            for gpu_id in spec.shared_gpus:
                await alone.enter_async_context(self._starting[gpu_id])
            await self._start(spec)

    async def _start(self, spec: ProcessSpec) -> None:
        """Start it and wait until it is healthy; LaunchError when it is not to be."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        log = self._settings.log_dir / f"{spec.name}.log"
        child = await Child.start(
            spec, log=log, lifeline=self._lifeline, grace_s=self._grace_s(spec)
        )
        self._children[spec.name] = child
        self._tell(Step.STARTING, child, f"starting, log in {log}")
        await self._until_healthy(child)
        child.has_started()
        after_s = loop.time() - began
        self._tell(Step.READY, child, f"ready after {after_s:.1f} s", after_s=after_s)

    async def _until_healthy(self, child: Child) -> None:
        settings = self._settings
        is_worker = child.spec.kind is ProcessKind.WORKER
        timeout_s = settings.ready_timeout_s if is_worker else settings.router_timeout_s
        ask = partial(
            is_healthy,
            child.spec.health_host,
            child.spec.health_port,
            timeout_s=settings.probe_timeout_s,
            path=child.spec.health_path,
            is_tls=child.spec.health_tls,
        )
        healthy = asyncio.create_task(
            wait_healthy(ask, timeout_s=timeout_s, interval_s=settings.probe_interval_s)
        )
        ended = asyncio.create_task(child.wait())
        try:
            await self._first_of(child, healthy, ended)
            if ended.done():
                raise self._failure(child, f"ended with {_exit_text(ended.result())} before it")
            if not healthy.result():
                await child.stop(grace_s=self._grace_s(child.spec))
                raise self._failure(child, f"was given {timeout_s:g} s before it")
        finally:
            healthy.cancel()
            ended.cancel()

    async def _first_of(self, child: Child, *tasks: asyncio.Task[Any]) -> None:
        """Wait for one of them, and tell now and then that the process is not healthy yet."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        still_s = self._settings.still_s
        while True:
            done, _ = await asyncio.wait(
                tasks, timeout=still_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            lines = last_lines(child.log, 1)
            last = f"; its log: {lines[0][:_SHOWN]}" if lines else "; nothing in its log"
            after_s = loop.time() - began
            self._tell(Step.LOADING, child, f"not ready after {after_s:.0f} s{last}")

    async def _keep_up(self, spec: ProcessSpec) -> None:
        """Wait for a process to die, bring it up again; LaunchError when nothing is left."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            child = self._children[spec.name]
            code = await child.wait()
            self._tell(Step.DIED, child, f"died with {_exit_text(code)}; log in {child.log}")
            await self._tell_router(spec, "lost")
            if loop.time() - began >= self._settings.stable_after_s:
                failures = 0
            while not await self._restarted(spec, failures + 1):
                failures += 1
                if failures >= self._settings.max_failures:
                    return self._give_up(spec)
            failures += 1
            await self._tell_router(spec, "up")

    async def _restarted(self, spec: ProcessSpec, attempt: int) -> bool:
        """Wait and start it again; False when it did not become healthy."""
        settings = self._settings
        wait_s = backoff_s(
            attempt, first_s=settings.first_backoff_s, most_s=settings.most_backoff_s
        )
        child = self._children[spec.name]
        self._tell(Step.WAITING, child, f"starting again in {wait_s:g} s")
        await asyncio.sleep(wait_s)
        try:
            taken = await wait_free(spec.listens, timeout_s=settings.ports_timeout_s)
            if taken:
                raise LaunchError(f"port {taken[0]} has not become free")
            await self._bring_up(spec)
        except LaunchError as error:
            self._tell(Step.DIED, child, f"failed to start: {str(error).splitlines()[0]}")
            return False
        return True

    def _give_up(self, spec: ProcessSpec) -> None:
        """Leave it down; without a router or any worker there is nothing left to keep."""
        self._given_up.add(spec.name)
        child = self._children[spec.name]
        what = f"given up after {self._settings.max_failures} failed starts in a row"
        self._tell(Step.GIVEN_UP, child, what)
        workers = {worker.name for worker in self._plan.workers}
        if spec.kind is ProcessKind.ROUTER or workers <= self._given_up:
            raise self._failure(child, f"was {what}; it never again")

    def _tell(self, step: Step, child: Child, what: str, *, after_s: float | None = None) -> None:
        name = child.spec.name
        message = f"{name}: {what}"
        self._report(
            Progress(
                step=step,
                process=name,
                message=message,
                pid=child.pid,
                log=str(child.log),
                after_s=after_s,
            )
        )

    def _failure(self, child: Child, what: str) -> LaunchError:
        lines = last_lines(child.log, self._settings.tail_lines)
        return LaunchError(
            f"{child.spec.name} {what} became healthy. The end of its log {child.log}:\n"
            + "\n".join(f"  | {line}" for line in lines)
        )

    async def _tell_router(self, spec: ProcessSpec, what: str) -> None:
        """The router watches its workers itself; this only saves it the time to notice."""
        if self._plan.router is None or spec.kind is not ProcessKind.WORKER:
            return
        is_told = await tell_router(
            self._plan.control,
            spec.name,
            what,
            admin_key=self._admin_key,
            cert_file=self._plan.control_cert,
            timeout_s=2.0,
        )
        if not is_told:
            logger.warning("the router did not take the news that %s is %s", spec.name, what)

    def _grace_s(self, spec: ProcessSpec) -> float:
        """How long a process may take to end: the router waits for open answers before."""
        return self._settings.grace_s + spec.drain_s

    async def _stop_all(self) -> None:
        """The router first, so that nothing new reaches a worker that is about to go.

        Agents last: what they set on devices is for workers that still run.
        """
        for kind in (ProcessKind.ROUTER, ProcessKind.WORKER, ProcessKind.AGENT):
            children = [child for child in self._children.values() if child.spec.kind is kind]
            await _all(child.stop(grace_s=self._grace_s(child.spec)) for child in children)
        listens = [pair for child in self._children.values() for pair in child.spec.listens]
        taken = await wait_free(listens, timeout_s=self._settings.ports_timeout_s)
        if taken:
            logger.error("still taken after all processes ended: ports %s", taken)
        self._report(Progress(step=Step.STOPPED, message="all processes stopped"))


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; at the first exception cancel the others, wait for them, and raise it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _exit_text(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
