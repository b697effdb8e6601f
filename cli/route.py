"""conserve-sglang route: run only the router of a tier map."""

from .fail import clean_failure
from .options import (
    AccessLogOption,
    LogFormatOption,
    LogLevelOption,
    ProcessesOption,
    StateOption,
    TierMapOption,
)


def route(
    tier_map: TierMapOption,
    with_state: StateOption = True,
    num_processes: ProcessesOption = None,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "text",
    access_log: AccessLogOption = False,
) -> None:
    """Run the router in front of workers that are started elsewhere, until Ctrl-C."""
    import os
    import sys

    from conserve_sglang.launcher.plan import router_spec, with_processes
    from conserve_sglang.tiermap import load_tier_map

    from .log_level import configure_logs

    with clean_failure():
        configure_logs(log_level, log_format)  # here only to refuse what there is not
        loaded = load_tier_map(tier_map)
        loaded = with_processes(loaded, num_processes)
        options = ["--log-level", log_level, "--log-format", log_format]
        if access_log:
            options.append("--access-log")
        if not with_state:
            options.append("--no-state")
        spec = router_spec(loaded, python=sys.executable, options=options)
    sys.stdout.flush()
    os.execv(spec.argv[0], [*spec.argv])
