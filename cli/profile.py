"""conserve-sglang profile: measure what a worker of a tier map takes."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import HostOption, JsonOption, TierMapOption

OutOption = Annotated[
    Path, typer.Option("--out", metavar="PATH", help="Profile to write: PATH.yaml, .csv, .html.")
]
MinutesOption = Annotated[
    float | None,
    typer.Option("--minutes", min=0.1, help="Measure so long, the widest gaps first."),
]
AttachOption = Annotated[
    list[str] | None,
    typer.Option("--attach", metavar="URL", help="Measure this running worker; repeatable."),
]
TierOption = Annotated[
    str | None, typer.Option("--tier", metavar="NAME", help="Only this tier's worker.")
]
PowerCapOption = Annotated[
    list[float] | None,
    typer.Option("--power-cap", min=1.0, metavar="W", help="Measure at this cap; repeatable."),
]
MeterOption = Annotated[
    str, typer.Option("--meter", metavar="NAME", help="auto, zeus, nvml, cpu-model or none.")
]
MaxBatchOption = Annotated[
    int | None, typer.Option("--max-batch", min=1, help="Largest batch; else 128, CPU 32.")
]
ReadyOption = Annotated[
    float, typer.Option(min=1.0, help="Longest time a worker may take to become healthy.")
]
StartsOption = Annotated[
    int,
    typer.Option(
        "--starts", min=1, help="Start the workers so often: each gives one first handoff."
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Begin anew; else an interrupted run goes on.")
]


def profile(  # noqa: PLR0913, PLR0917 - each one is an option of the command
    tier_map: TierMapOption,
    out: OutOption,
    minutes: MinutesOption = None,
    attach: AttachOption = None,
    tier: TierOption = None,
    power_cap: PowerCapOption = None,
    meter: MeterOption = "auto",
    max_batch: MaxBatchOption = None,
    fresh: FreshOption = False,
    starts: StartsOption = 1,
    host: HostOption = None,
    ready_timeout_s: ReadyOption = 900.0,
    log_dir: Annotated[
        Path, typer.Option("--log-dir", metavar="DIR", help="Where each process's log goes.")
    ] = Path("out/logs"),
    as_json: JsonOption = False,
) -> None:
    """Measure prefill, append, decode and transfer on real workers, and write a profile.

    Starts one prefill and one decode worker of the tier map, or attaches to running ones. Points
    are kept as they are measured: after an interruption the same command goes on.
    """
    from conserve_sglang.profiler.options import ProfileOptions, meter_choice
    from conserve_sglang.profiler.run import run_profile
    from conserve_sglang.tiermap import load_tier_map

    from .profile_view import print_result, showing

    with clean_failure():
        loaded = load_tier_map(tier_map)
        options = ProfileOptions(
            out=out,
            log_dir=log_dir,
            budget_s=None if minutes is None else minutes * 60,
            tier=tier,
            host=host,
            attach=tuple(attach or ()),
            power_caps_w=tuple(power_cap or ()),
            meter=meter_choice(meter),
            max_batch=max_batch,
            begins_anew=fresh,
            num_starts=starts,
            ready_timeout_s=ready_timeout_s,
        )
        with showing(as_json=as_json) as report:
            result = run_profile(loaded, options, report)
        print_result(result, as_json=as_json)
