"""conserve-sglang launch: start the workers and the router of a tier map."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import (
    AccessLogOption,
    CapsOption,
    HostOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    ProcessesOption,
    StateOption,
    TierMapOption,
)

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print each command line and start nothing; with --host that one's."
    ),
]


def launch(  # noqa: PLR0913, PLR0917 - each one is an option of the command
    tier_map: TierMapOption,
    dry_run: DryRunOption = False,
    log_dir: Annotated[
        Path, typer.Option("--log-dir", metavar="DIR", help="Where each process's log goes.")
    ] = Path("out/logs"),
    host: HostOption = None,
    with_router: Annotated[
        bool, typer.Option("--router/--no-router", help="Whether this machine runs the router.")
    ] = True,
    with_state: StateOption = True,
    num_processes: ProcessesOption = None,
    with_caps: CapsOption = True,
    ready_timeout_s: Annotated[
        float, typer.Option(min=1.0, help="Longest time a process may take to become healthy.")
    ] = 900.0,
    as_json: JsonOption = False,
    log_level: LogLevelOption = "warning",
    log_format: LogFormatOption = "text",
    access_log: AccessLogOption = False,
) -> None:
    """Start every worker of this machine and the router, and keep them up until Ctrl-C."""
    from conserve_sglang.launcher.launch import LaunchOptions, describe_commands
    from conserve_sglang.launcher.launch import launch as run_launch
    from conserve_sglang.launcher.plan import with_processes
    from conserve_sglang.tiermap import load_tier_map

    from .launch_view import print_commands, showing
    from .log_level import configure_logs

    with clean_failure():
        loaded = with_processes(load_tier_map(tier_map), num_processes)
        options = LaunchOptions(
            log_dir=log_dir,
            host=host,
            with_router=with_router,
            with_state=with_state,
            log_format=log_format,
            access_log=access_log,
            ready_timeout_s=ready_timeout_s,
            with_caps=with_caps,
        )
        configure_logs(log_level, log_format)
        if dry_run:
            print_commands(loaded, describe_commands(loaded, options), options, as_json=as_json)
            return
        with showing(as_json=as_json) as report:
            run_launch(loaded, options, report)
