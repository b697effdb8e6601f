"""A launch from beginning to end: plan, check, supervise until a signal or a failure."""

import asyncio
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.launcher.caps import caps_here, hold_caps
from conserve_sglang.launcher.energy_check import check_energy_files, energy_notices
from conserve_sglang.launcher.here import host_test
from conserve_sglang.launcher.plan import LaunchPlan, ProcessSpec, all_commands, make_plan
from conserve_sglang.launcher.preflight import check
from conserve_sglang.launcher.progress import Progress, Report, Step
from conserve_sglang.launcher.supervise import SuperviseSettings, Supervisor
from conserve_sglang.tiermap.secrets import admin_key, redis_password, worker_api_key

_SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "terminal closed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What the user of a launch chooses. `host` is the tier map's name for this machine."""

    log_dir: Path
    host: str | None = None
    with_router: bool = True
    with_state: bool = True
    log_format: str = "text"
    access_log: bool = False
    ready_timeout_s: float = 900.0
    with_caps: bool = True

    @property
    def router_options(self) -> tuple[str, ...]:
        """What the router's command line says of all this, where it is not the default."""
        return (
            *(() if self.with_state else ("--no-state",)),
            *(() if self.log_format == "text" else ("--log-format", self.log_format)),
            *(("--access-log",) if self.access_log else ()),
        )


def plan_launch(tier_map: TierMap, options: LaunchOptions) -> LaunchPlan:
    """What a launch with these options starts."""
    return make_plan(
        tier_map,
        is_here=host_test(options.host),
        python=sys.executable,
        with_router=options.with_router,
        router_options=options.router_options,
        phase_dir=str(options.log_dir.absolute()),
    )


def describe_commands(
    tier_map: TierMap, options: LaunchOptions
) -> tuple[tuple[str, ProcessSpec], ...]:
    """Every process of the map with its host, to be shown instead of started; with a host given,
    what that one starts. Raises ConfigError where no worker runs on it."""
    check_energy_files(tier_map)
    commands = all_commands(
        tier_map,
        is_here=host_test(options.host),
        python=sys.executable,
        router_options=options.router_options,
        phase_dir=str(options.log_dir.absolute()),
    )
    if options.host is None:
        return commands
    own = {spec.name for spec in plan_launch(tier_map, options).processes}
    return tuple((host, spec) for host, spec in commands if spec.name in own)


def launch(tier_map: TierMap, options: LaunchOptions, report: Report) -> None:
    """Run a deployment until a signal ends it; LaunchError when it cannot be kept up."""
    plan = plan_launch(tier_map, options)
    check_energy_files(tier_map)
    for notice in (*plan.notices, *energy_notices(tier_map)):
        report(Progress(step=Step.NOTICE, message=notice))
    worker_api_key(tier_map.router)  # here only to say at once that it is not there
    key = admin_key(tier_map.router)
    if options.with_router and options.with_state:
        redis_password(tier_map.router)
    check(plan, tier_map)
    make_room_for_logs(plan, options.log_dir)
    asked = caps_here(tier_map, options.host)
    if asked and not options.with_caps:
        report(Progress(step=Step.NOTICE, message="the tier map's caps are not set: --no-caps"))
        asked = ()
    settings = SuperviseSettings(log_dir=options.log_dir, ready_timeout_s=options.ready_timeout_s)
    if len(plan.workers) < len(tier_map.workers):
        # The router also waits for workers that load their model on other machines.
        settings = replace(settings, router_timeout_s=options.ready_timeout_s)
    caps = hold_caps(asked, lambda line: report(Progress(step=Step.NOTICE, message=line)))
    try:
        asyncio.run(_supervise(plan, settings, report, key))
    finally:
        if caps is not None:
            caps.close()


async def _supervise(
    plan: LaunchPlan, settings: SuperviseSettings, report: Report, key: str | None
) -> None:
    supervisor = Supervisor(plan, settings, report, key)
    loop = asyncio.get_running_loop()
    for number, why in _SIGNALS.items():
        loop.add_signal_handler(number, supervisor.stop, why)
    await supervisor.run()


def make_room_for_logs(plan: LaunchPlan, log_dir: Path) -> None:
    """Each launch begins its logs anew; a restart within it appends."""
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for spec in plan.processes:
            (log_dir / f"{spec.name}.log").write_bytes(b"")
    except OSError as error:
        raise ConfigError(f"--log-dir {log_dir}: cannot be written: {error.strerror}") from error
